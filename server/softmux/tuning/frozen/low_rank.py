"""LoRAs of many tasks on one frozen module: each acts on its own tasks' tokens of a pack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from softmux.tuning.frozen.packing import Members


@dataclass(frozen=True, slots=True)
class LowRank:
    """By module: `a [tasks, rank, in]` and `b [tasks, out, rank]`; the update is `scaling · b a x`."""

    updates: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scaling: float

    def attach(self, model: Any, rows: Members) -> list[Any]:
        """Hooks that add the updates for `rows` of the pack that runs next; remove them after it."""
        return [
            model.get_submodule(name).register_forward_hook(_adds(a, b, self.scaling, rows))
            for name, (a, b) in self.updates.items()
        ]


def _adds(a: torch.Tensor, b: torch.Tensor, scaling: float, rows: Members) -> Callable[..., torch.Tensor]:
    def add(_module: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = given[0].reshape(-1, given[0].shape[-1])
        own = x.index_select(0, rows.padded.flatten()).view(*rows.padded.shape, -1)
        down, up = (w.index_select(0, rows.members).to(x.dtype).transpose(1, 2) for w in (a, b))
        delta = (own @ down) @ up * scaling
        flat = delta.reshape(-1, delta.shape[-1]).index_select(0, rows.flat)
        y = output.reshape(-1, output.shape[-1])
        return y.index_add(0, rows.at, flat.to(y.dtype)).view_as(output)

    return add
