"""The three attentions of an encoder-decoder's step, over one pool and one slot table, by torch.

A row's positions are its decoder's trained prefix, if it has one, then its encoder's input, then what its decoder was
given and has chosen. The slots of the encoder's input hold what every decoder layer made of the encoder's last hidden
states for its cross-attention; all others hold the decoder's own keys and values. The encoder's own are kept nowhere.
"""

from __future__ import annotations

import numpy as np
import torch

from softmux.engine.attention.base import PackedRows
from softmux.engine.attention.distances import DistanceBias
from softmux.engine.attention.torch_sdpa import TorchAttention
from softmux.engine.device import send, to_device
from softmux.engine.kv import KVPool
from softmux.scheduler.rows import Ints


class SplitStep:
    """A packed step's tokens: `source` are the encoder's, `target` the decoder's (`[…]` int64, packed indices on the
    device), with their positions and their slots. `source_counts`, `target_counts`: by row, on the host."""

    def __init__(self, rows: PackedRows) -> None:
        assert rows.sources is not None
        self.first, self.end = rows.sources[:, 0], rows.sources[:, 1]
        starts, counts = np.array(rows.starts), np.array(rows.counts)
        self.source_counts: Ints = np.clip(self.end - starts, 0, counts)
        self.target_counts: Ints = counts - self.source_counts
        row = np.repeat(np.arange(len(counts)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        position = within + starts[row]
        is_source = position < self.end[row]
        source, target = np.flatnonzero(is_source), np.flatnonzero(~is_source)
        behind = self.end - self.first
        rank = np.where(is_source, 0, np.cumsum(~is_source) - 1)
        self.source, self.source_positions, self.target, self.target_positions, self.rank = send(
            rows.slots.device,
            source, (position - self.first[row])[source], target, (position - behind[row])[target], rank,
        )  # fmt: skip
        self.source_slots, self.target_slots = rows.slots[self.source], rows.slots[self.target]


class ThreeWayAttention:
    """`begin` splits a step; `encode`, `own` and `cross` are then what the attention modules of its parts ask for."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._encoder, self._own, self._cross = TorchAttention(pool), TorchAttention(pool), TorchAttention(pool)
        self._step: SplitStep

    def begin(self, rows: PackedRows) -> SplitStep:
        """Every row brings a token of its decoder's, at least."""
        step = self._step = SplitStep(rows)
        slots, newcomers = rows.slots, np.flatnonzero(step.source_counts)
        if len(newcomers):
            counts = step.source_counts[newcomers]
            packed = to_device((np.cumsum(counts) - counts)[:, None] + _upto(counts), slots.device)
            self._encoder.begin(_part(packed, np.zeros_like(counts), counts, counts, step.source_slots, causal=False))
        first, behind = step.first[:, None], (step.end - step.first)[:, None]
        counts = step.target_counts
        ends = np.array(rows.starts) + np.array(rows.counts) - behind[:, 0]
        at = _upto(ends)
        row, own, source = (
            to_device(index, slots.device)
            for index in (rows.table_rows, np.where(at < first, at, at + behind), first + _upto(behind[:, 0]))
        )
        table = rows.table[row[:, None], own]
        self._own.begin(_part(table, ends - counts, counts, ends, step.target_slots, causal=True))
        table = rows.table[row[:, None], source]
        self._cross.begin(_part(table, np.zeros_like(counts), counts, behind[:, 0], step.target_slots, causal=False))
        return step

    def encode(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float, bias: DistanceBias | None
    ) -> torch.Tensor:
        """Each source token over all of its source: `[tokens, heads, head_dim]` each."""
        return self._encoder.attend_at(query, lambda at: (key[at], value[at]), scaling=scaling, bias=bias)

    def own(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scaling: float,
        bias: DistanceBias | None,
    ) -> torch.Tensor:  # fmt: skip
        """Each decoder token over its trained prefix and the decoder tokens up to it; new ones are written first."""
        self._pool.put(layer, self._step.target_slots, key, value)
        return self._own.attend_at(
            query, lambda at: self._pool.take(layer, at, query.dtype), scaling=scaling, bias=bias
        )

    def cross(
        self, layer: int, query: torch.Tensor, new: tuple[torch.Tensor, torch.Tensor] | None, *, scaling: float
    ) -> torch.Tensor:
        """Each decoder token over its row's source. `new`: the keys and values of the step's source tokens."""
        if new is not None:
            self._pool.put(layer, self._step.source_slots, *new)
        return self._cross.attend_at(query, lambda at: self._pool.take(layer, at, query.dtype), scaling=scaling)


def _upto(lengths: Ints) -> Ints:
    """`[len(lengths), most]`: 0, 1, … of each, the last again behind its end."""
    return np.minimum(np.arange(lengths.max()), lengths[:, None] - 1)


def _part(
    table: torch.Tensor, starts: Ints, counts: Ints, keys: Ints, slots: torch.Tensor, *, causal: bool
) -> PackedRows:
    """A part of a step as a step of its own: row i has line i of `table`."""
    return PackedRows(
        table_rows=list(range(len(counts))), starts=starts.tolist(), counts=counts.tolist(), table=table, slots=slots,
        causal=causal, keys=keys.tolist(),
    )  # fmt: skip
