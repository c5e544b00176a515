"""CUDA graphs of decode steps whose rows' adapters change the base: captured when such a step first comes.

A launch that finds nothing to do still takes a microsecond, in every layer: so steps of rows that change nothing keep
the graphs without all this, and adapters of queries, keys and values alone, which are the most, have some of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch

from softmux.engine.delta_fused import Kinds
from softmux.engine.device import is_shortage, send
from softmux.engine.graphs import DecodeGraphs
from softmux.scheduler.rows import Ints, Step

log = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Fewer than other steps have: each graph keeps its logits."""
_FAMILIES: tuple[Kinds, ...] = (frozenset({"qkv"}), frozenset({"qkv", "out", "gate_up", "down"}))


class DeltaGraphs:
    """`make(kinds, row_slots)` gives a family's graphs, none captured yet. `row_slots [max_rows + 1]` int32 on the
    device says each table row's slot, −1 for none; the last row is padding's."""

    def __init__(
        self, make: Callable[[Kinds, torch.Tensor], DecodeGraphs], max_rows: int, device: torch.device
    ) -> None:
        self._make = make
        self._device = device
        self._told = np.full(max_rows + 1, -1, np.int64)
        self._families: dict[Kinds, DecodeGraphs | None] = {}
        self.row_slots = torch.full((max_rows + 1,), -1, dtype=torch.int32, device=device)

    def tell(self, rows: Ints, slots: Ints) -> None:
        """These table rows have these slots from now on, in the current stream's order."""
        if (self._told[rows] != slots).any():
            at, values = send(self._device, rows, slots)
            self.row_slots[at] = values.int()
            self._told[rows] = slots  # last: what is above may raise for want of memory

    def replay(self, kinds: Kinds, step: Step) -> tuple[torch.Tensor, torch.Tensor] | None:
        """As `DecodeGraphs.replay`; None where there is no graph of that size, or none can be captured."""
        kinds = next(family for family in _FAMILIES if kinds <= family)
        if kinds not in self._families:
            self._families[kinds] = self._make(kinds, self.row_slots)
        family = self._families[kinds]
        if family is None or not family.fits(step.shape[1]):
            return None
        try:
            family.capture_for(step.shape[1])
        except Exception as error:
            if is_shortage(error):
                raise
            log.exception("no CUDA graphs of steps with LoRAs on %s; they run without", ", ".join(sorted(kinds)))
            self._families[kinds] = None
            return None
        return family.replay(step)
