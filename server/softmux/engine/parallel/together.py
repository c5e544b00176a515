"""An engine of each rank, and how the first comes to lead the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from softmux.engine.engine import Engine, pick_device
from softmux.engine.parallel.leader import Leader
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.parallel.sharded import ShardedModel
from softmux.errors import SelfTestFailed
from softmux.settings import Settings


def meet(settings: Settings, rank: int, meeting: Path) -> Ranks:
    """Waits for all ranks at the file `meeting`, each with the device that is its own. Raises `SelfTestFailed` where
    there are fewer GPUs than ranks."""
    device = pick_device(settings.device)
    if device.type == "cuda":
        if torch.cuda.device_count() < settings.tensor_parallel:
            raise SelfTestFailed(
                f"--tensor-parallel {settings.tensor_parallel} needs as many GPUs, and this machine shows "
                f"{torch.cuda.device_count()}: lower it, or look at CUDA_VISIBLE_DEVICES"
            )
        device = torch.device("cuda", rank)
    return Ranks(rank, settings.tensor_parallel, device, meeting)


def lead(engine: Engine, endpoints: Sequence[tuple[str, str]]) -> None:
    """The engine, loaded as those of the other ranks are, leads them from now on."""
    model = engine.model
    assert isinstance(model, ShardedModel)
    engine.lead(Leader(endpoints, [replace(model.cut, rank=rank) for rank in range(model.cut.size)]))
