"""The processes that hold one model between them, and what they do together."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from softmux.errors import InternalError

if TYPE_CHECKING:
    from softmux.engine.parallel.one_shot import NormedSums

_LOAD = timedelta(hours=1)
"""Rank 0 reads every weight for the fingerprint while the others wait for it."""
_ALONE = {
    "GLOO_SOCKET_IFNAME": "lo",  # all ranks are of this host, whose name need not resolve
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_NVLS_ENABLE": "0",  # multicast takes the host's NVSwitch for itself: others may share it
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
}


_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # as torch 2.13 calls it


class Ranks:
    """Process `rank` of `size`. Every rank calls the same of these methods in the same order, or all of them wait.

    `reduce`, `gather` and `hand_on` work on the device, in its stream's order, and may be captured in CUDA graphs;
    the others are between hosts. Where `pairwise` is set, small sums take it: it gives None for what it does not do;
    the fused layers take `normed`, where it is there, for sums with a norm behind them.
    """

    def __init__(self, rank: int, size: int, device: torch.device, rendezvous: Path) -> None:
        """Returns once all ranks are there; `rendezvous` is a file of their own that does not exist yet."""
        self.rank, self.size, self.device = rank, size, device
        for name, value in _ALONE.items():
            os.environ.setdefault(name, value)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size, timeout=_LOAD)
        self._hosts: Any = dist.group.WORLD
        self._devices: Any = dist.new_group(backend="nccl") if device.type == "cuda" else self._hosts
        self.pairwise: Callable[[torch.Tensor], torch.Tensor | None] | None = None
        self.normed: NormedSums | None = None

    @property
    def group(self) -> Any:
        """The devices' process group."""
        return self._devices

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' `x`, the same to the bit on each; maybe in its memory."""
        if self.pairwise is not None:
            summed = self.pairwise(x)
            if summed is not None:
                return summed
        x = x.contiguous()
        dist.all_reduce(x, group=self._devices)
        return x

    def gather(self, x: torch.Tensor, width: int) -> torch.Tensor:
        """All ranks' `x [rows, each]` side by side, the first `width` of them: `[rows, width]`."""
        rows, each = x.shape
        parts = x.new_empty((self.size, rows, each))
        _gather(parts.view(self.size * rows, each), x.contiguous(), group=self._devices)
        return parts.transpose(0, 1).reshape(rows, self.size * each)[:, :width].contiguous()

    def hand_on(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's `x`, in everyone's."""
        dist.broadcast(x, 0, group=self._devices)
        return x

    # --- between hosts -----------------------------------------------------------------------------------------------

    def least(self, number: int) -> int:
        """Of what all ranks bring."""
        told = torch.tensor([number])
        dist.all_reduce(told, dist.ReduceOp.MIN, group=self._hosts)
        return int(told)

    def judge(self, failed: Exception | None) -> Exception | None:
        """What failed in this process, or that something did in another; None where all went well."""
        good = self.agree(failed is None)
        return failed or (None if good else InternalError("it failed in another process"))

    def agree(self, good: bool) -> bool:
        """Whether it is so for every rank."""
        return bool(self.least(int(good)))

    def said(self, words: str) -> str:
        """Rank 0's words."""
        told = [words]
        dist.broadcast_object_list(told, 0, group=self._hosts)
        return told[0]

    def close(self) -> None:
        dist.destroy_process_group()
