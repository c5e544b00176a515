"""The GPU backend: Triton kernels over the paged pool. Decoding rows and chunks of one step take two launches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from softmux.engine.attention.base import AttentionBackend, DecodeRows, PackedRows
from softmux.engine.device import to_device
from softmux.engine.kernels import attention as kernels
from softmux.engine.kernels.rope_decode import rope_decode
from softmux.engine.kv import KVPool
from softmux.engine.layout import cut


@dataclass(slots=True)
class _Chunks:
    blocks: tuple[torch.Tensor, torch.Tensor]
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
    causal: bool
    queries: int
    """A block has up to so many."""


class TritonAttention(AttentionBackend):
    """Rows that bring one token decode with split keys; longer ones go through the extend kernel.

    The packed step has its decoding rows anywhere.
    """

    name = "triton"

    def __init__(self, pool: KVPool) -> None:
        super().__init__(pool)
        self._processors = torch.cuda.get_device_properties(pool.device).multi_processor_count
        self._decode: DecodeRows | None = None
        self._picked: torch.Tensor | None = None
        self._chunks: _Chunks | None = None
        self._table = torch.empty(0, dtype=torch.int32, device=pool.device)
        self._arrived = torch.zeros(kernels.counters(self._processors), dtype=torch.int32, device=pool.device)

    def splits(self, rows: int) -> int:
        return kernels.splits_for(rows, self._pool.keys[0].shape[1], self._processors)

    def begin_decode(self, rows: DecodeRows) -> None:
        """Every row of the step decodes: nothing is looked at on the host, so the step can be captured in a graph."""
        self._decode, self._picked, self._chunks = rows, None, None
        self._slots, self._table = rows.slots, rows.table

    @property
    def decoding(self) -> bool:
        """Whether every row of the step brings one token, and they are so few that `rotate_and_decode` pays: where
        keys are split, waiting rules; where they are not, launches of their own keep more loads on their way."""
        return self._decode is not None and self._picked is None and self._decode.splits > 1

    def begin(self, rows: PackedRows) -> None:
        device = self._pool.device
        starts, counts, table_rows = (np.asarray(x, np.int64) for x in (rows.starts, rows.counts, rows.table_rows))
        offsets = np.cumsum(counts) - counts
        single, longer = np.flatnonzero(counts == 1), np.flatnonzero(counts != 1)
        self._slots, self._table = rows.slots, rows.table
        self._decode = self._picked = self._chunks = None
        queries = self.queries(int(counts.max(initial=0)))
        blocks = cut(starts[longer], counts[longer], queries)
        numbers = [x[members] for members in (single, longer) for x in (table_rows, offsets, starts, counts)]
        sent = to_device(np.concatenate([*numbers, *blocks]), device, torch.int32)
        s, c, b = len(single), len(longer), len(blocks[0])
        if s:
            part = sent[: 4 * s].view(4, s)
            self._decode = DecodeRows(rows.table, part[0], part[2], rows.slots, self.splits(s))
            self._picked = part[1] if c else None
        if c:
            part = sent[4 * s : 4 * (s + c)].view(4, c)
            first_query = sent[4 * (s + c) :].view(2, b)
            chunked = (part[0], part[1], part[2], part[3])
            self._chunks = _Chunks((first_query[0], first_query[1]), chunked, rows.causal, queries)

    def queries(self, longest: int) -> int:
        """A block of queries has so many, in a step whose longest row brings that many tokens."""
        return kernels.query_block(longest, self._pool.keys[0].shape[2])

    def begin_mixed(
        self,
        decodes: DecodeRows,
        picked: torch.Tensor,
        blocks: tuple[torch.Tensor, torch.Tensor],
        chunks: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
        queries: int,
    ) -> None:
        """Rows of one token and longer ones, and places that stand for neither, as the kernels take them
        (`attention.decode` and `extend`): nothing is looked at on the host, so the step can be captured in a graph."""
        self._decode, self._picked = decodes, picked
        self._chunks = _Chunks(blocks, chunks, True, queries)
        self._slots, self._table = decodes.slots, decodes.table

    def rotate_and_decode(
        self,
        layer: int,
        qkv: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        norms: tuple[torch.Tensor, torch.Tensor] | None,
        eps: float,
        *,
        heads: int,
        scaling: float,
        window: int | None,
    ) -> torch.Tensor:
        """As `attend`, for the merged product of a layer with rotary embedding, in one launch (see `rope_decode`)."""
        rows = self._decode
        assert rows is not None, "only in a step whose rows all decode"
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        return rope_decode(
            qkv, keys, values, rotation, self._table, rows.table_rows, rows.positions, rows.slots, norms, eps,
            self._arrived, heads=heads, scaling=scaling, window=window, splits=rows.splits,
        )  # fmt: skip

    def attend_written(
        self, layer: int, query: torch.Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        query = query.contiguous()
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        out = torch.empty_like(query)
        if self._chunks is not None:
            kernels.extend(
                query, keys, values, self._table, out, self._chunks.blocks, self._chunks.rows,
                scaling=scaling, window=window, softcap=softcap, queries=self._chunks.queries,
                causal=self._chunks.causal,
            )  # fmt: skip
        rows = self._decode
        if rows is not None:
            kernels.decode(
                query, keys, values, self._table, rows.table_rows, rows.positions, out, self._picked,
                scaling=scaling, window=window, softcap=softcap, splits=rows.splits,
            )  # fmt: skip
        return out
