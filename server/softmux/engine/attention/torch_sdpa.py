"""The reference backend: torch's scaled dot product attention over gathered KV. CPU and GPU, every dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from softmux.engine.attention.base import AttentionBackend, PackedRows
from softmux.engine.attention.distances import DistanceBias
from softmux.engine.kv import KVPool

KeysAt = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A layer's keys and values `[slots, kv_heads, head_dim]` at slots `[slots]`."""

_WASTE = 1.5
"""A group may compute this many times what its rows need: beyond it, two smaller launches are cheaper."""


@dataclass(slots=True)
class _Group:
    """Rows of like shape, padded to one `[rows, queries, keys]` block. Index tensors point into the packed step."""

    query_index: torch.Tensor
    """`[rows · queries]` packed index of each query; padded ones point at the row's first."""
    kept: torch.Tensor | None
    """`[real queries]` which of those are real; None: all are."""
    rows: int
    queries: int
    keys: int
    slots: torch.Tensor
    """`[rows · keys]` pool slots; padded ones point at the row's own first slot, so no other row's values are read."""
    query_positions: torch.Tensor
    """`[rows, queries]`."""
    lengths: torch.Tensor
    """`[rows]` keys each row has."""
    causal: bool
    masks: dict[int | None, torch.Tensor | None] = field(default_factory=dict)
    biased: dict[DistanceBias, torch.Tensor] = field(default_factory=dict)

    def scores(self, window: int | None, bias: DistanceBias | None, dtype: torch.dtype) -> torch.Tensor | None:
        """What is added to the scores, `[rows, 1 or heads, queries, keys]`, made once a step. None: nothing."""
        mask = self.mask(window, dtype)
        if bias is None:
            return mask
        if bias not in self.biased:
            values = bias.values(self.query_positions, self.keys)
            self.biased[bias] = (values if mask is None else values + mask).to(dtype)
        return self.biased[bias]

    def mask(self, window: int | None, dtype: torch.dtype) -> torch.Tensor | None:
        """`[rows, 1, queries, keys]` additive mask, made once a step for each window size. None: nothing is hidden."""
        if window not in self.masks:
            at = torch.arange(self.keys, device=self.slots.device)
            position = self.query_positions[:, :, None]
            last = self.lengths[:, None, None] - 1
            seen = at <= (torch.minimum(position, last) if self.causal else last)
            if window is not None:
                seen = seen & (at > position - window)
                if not self.causal:
                    seen &= at < position + window
            hidden = ~seen
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            mask.masked_fill_(hidden, float("-inf"))
            self.masks[window] = mask[:, None] if bool(hidden.any()) else None
        return self.masks[window]


class TorchAttention(AttentionBackend):
    """Gathers each row's keys and values from the pool and attends in a few padded groups of like rows."""

    name = "torch"

    def __init__(self, pool: KVPool) -> None:
        super().__init__(pool)
        self._groups: list[_Group] = []

    def begin(self, rows: PackedRows) -> None:
        self._slots = rows.slots
        offsets, at = [], 0
        for count in rows.counts:
            offsets.append(at)
            at += count
        self._groups = [self._group(rows, members, offsets) for members in _gather_alike(rows)]

    def _group(self, rows: PackedRows, members: list[int], offsets: list[int]) -> _Group:
        device = rows.slots.device
        counts = torch.tensor([rows.counts[i] for i in members], device=device)
        starts = torch.tensor([rows.starts[i] for i in members], device=device)
        offset = torch.tensor([offsets[i] for i in members], device=device)
        table_rows = torch.tensor([rows.table_rows[i] for i in members], device=device)
        queries = max(rows.counts[i] for i in members)
        reach = rows.lengths()
        keys = max(reach[i] for i in members)
        lengths = torch.tensor([reach[i] for i in members], device=device)
        step = torch.arange(queries, device=device)
        real = step < counts[:, None]
        query_index = offset[:, None] + torch.where(real, step, 0)
        slots = rows.table[table_rows, :keys]
        slots = torch.where(torch.arange(keys, device=device) < lengths[:, None], slots, slots[:, :1])
        padded = any(rows.counts[i] != queries for i in members)
        return _Group(
            query_index=query_index.flatten(),
            kept=real.flatten().nonzero().flatten() if padded else None,
            rows=len(members),
            queries=queries,
            keys=keys,
            slots=slots.flatten(),
            query_positions=starts[:, None] + torch.where(real, step, 0),
            causal=rows.causal,
            lengths=lengths,
        )

    def attend_written(
        self, layer: int, query: torch.Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        def keys_at(slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self._pool.take(layer, slots, query.dtype)

        return self.attend_at(query, keys_at, scaling=scaling, window=window, softcap=softcap)

    def attend_at(
        self, query: torch.Tensor, keys_at: KeysAt, *, scaling: float, window: int | None = None,
        softcap: float | None = None, bias: DistanceBias | None = None,
    ) -> torch.Tensor:  # fmt: skip
        """As `attend_written`, over the keys and values of `keys_at`, wherever the table's slots lie."""
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in self._groups:
            q = _block(query.index_select(0, group.query_index), group.rows, group.queries)
            keys, values = keys_at(group.slots)
            k = _block(keys, group.rows, group.keys)
            v = _block(values, group.rows, group.keys)
            mask = group.scores(window, bias, query.dtype)
            if softcap is None:
                grouped = k.shape[1] != q.shape[1]
                o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=grouped)
            else:
                o = _softcapped(q, k, v, mask, scaling, softcap)
            flat = o.transpose(1, 2).flatten(0, 1)
            if group.kept is None:
                output.index_copy_(0, group.query_index, flat)
            else:
                output.index_copy_(0, group.query_index[group.kept], flat[group.kept])
        return output


def _block(packed: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """`[rows · length, heads, head_dim]` as attention wants it: `[rows, heads, length, head_dim]`."""
    return packed.view(rows, length, *packed.shape[1:]).transpose(1, 2)


def _softcapped(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scaling: float, softcap: float
) -> torch.Tensor:
    """Gemma 2's attention (arXiv 2408.00118, section 2): scores c·tanh(q·k/c) before the mask, softmax in float32."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = torch.tanh(q @ k.transpose(-1, -2) * scaling / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _gather_alike(rows: PackedRows) -> list[list[int]]:
    """Splits the step's rows into groups that waste little when padded to their largest member."""
    reach = rows.lengths()
    order = sorted(range(len(rows.counts)), key=lambda i: (rows.counts[i], reach[i]))
    groups: list[list[int]] = []
    queries = keys = area = 0
    for i in order:
        count, length = rows.counts[i], reach[i]
        wide, deep = max(queries, count), max(keys, length)
        if groups and wide * deep * (len(groups[-1]) + 1) <= _WASTE * (area + count * length):
            groups[-1].append(i)
            queries, keys, area = wide, deep, area + count * length
        else:
            groups.append([i])
            queries, keys, area = count, length, count * length
    return groups
