"""CUDA graphs of small steps that mix decoding rows with chunks of prompts: what every step is while requests arrive.

Launched one by one, a step of few tokens waits for the host: on a 1B model some 3 ms, for what the card does in one. A
graph holds the layers and the choice of tokens, for a number of tokens and of decoding rows (`Bucket`); what comes
before them, learned vectors among it, is launched as ever.
"""

from __future__ import annotations

import bisect
import functools
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch

from softmux.engine.attention.base import DecodeRows
from softmux.engine.device import is_shortage
from softmux.engine.graphs import capture_each, captured
from softmux.engine.layout import Layout, cut
from softmux.engine.staging import Ring

if TYPE_CHECKING:  # Triton is there on GPU machines only
    from softmux.engine.attention.triton_paged import TritonAttention

log = logging.getLogger(__name__)
T = TypeVar("T")

_TOKENS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
_DECODES = (8, 64, 256)
_LINE = 32
"""Numbers of 4 bytes in 128: kernels are compiled anew for pointers that lie otherwise."""
_NEXT = 2
"""Sizes that are looked at for a step of many short chunks: in a graph far larger than the step it would lose."""
_TRIALS = 3
_PAYS = 0.9
"""A graph pays where it takes so much of the time without."""


class Bucket(NamedTuple):
    """What a graph has room for."""

    tokens: int
    decodes: int
    """Rows of one token."""
    queries: int
    """Of a block of `extend`."""

    @property
    def chunks(self) -> int:
        return min(self.tokens // 2, 64 + self.tokens // 16)

    @property
    def wanted(self) -> int:
        """Tokens whose logits are computed."""
        return min(self.tokens, self.decodes + self.chunks)

    @property
    def lengths(self) -> Inputs[int]:
        """Of its inputs. Behind the chunks is one of no tokens, for the blocks that are not needed."""
        chunks, blocks = self.chunks + 1, self.tokens // self.queries + self.chunks
        return Inputs(
            self.tokens, self.tokens, self.wanted, self.wanted, self.decodes, self.decodes, self.decodes,
            chunks, chunks, chunks, chunks, blocks, blocks,
        )  # fmt: skip


class Inputs(NamedTuple, Generic[T]):
    """The numbers of a step, int32. By token: `positions`, `slots`. By wanted one: `wanted`, and its table row. By row
    of one token: which token, its table row and position. By chunk: table row, first token, start, count. By block of
    queries: its chunk and first query."""

    positions: T
    slots: T
    wanted: T
    choosers: T
    picked: T
    rows: T
    at: T
    chunk_rows: T
    offsets: T
    starts: T
    counts: T
    block_chunks: T
    block_firsts: T


@functools.cache
def _places(bucket: Bucket) -> tuple[tuple[slice, ...], int]:
    """Where each of a bucket's inputs lies in one array, and how long that is."""
    ends = np.cumsum([-(-length // _LINE) * _LINE for length in bucket.lengths]).tolist()
    begins = zip([0, *ends[:-1]], bucket.lengths, strict=True)
    return tuple(slice(begin, begin + length) for begin, length in begins), ends[-1]


def parts(flat: Any, bucket: Bucket) -> Inputs[Any]:
    """A bucket's inputs as parts of one array, or tensor."""
    return Inputs(*(flat[place] for place in _places(bucket)[0]))


def room(bucket: Bucket) -> int:
    """Numbers that `parts` are cut from."""
    return _places(bucket)[1]


def fill(into: Inputs[Any], layout: Layout, bucket: Bucket, *, spare_row: int, spare_slot: int) -> None:
    """The step's numbers, and where it has fewer than the bucket what stands for nothing: such tokens' keys go to the
    spare slot, such choices to the spare row."""
    counts = layout.counts
    offsets = np.cumsum(counts) - counts
    single, longer = np.flatnonzero(counts == 1), np.flatnonzero(counts != 1)
    blocks = cut(layout.starts[longer], counts[longer], bucket.queries)
    given = (
        (layout.positions, 0), (layout.slots, spare_slot),
        (layout.wanted, 0), (np.repeat(layout.rows, counts)[layout.wanted], spare_row),
        (offsets[single], -1), (layout.rows[single], spare_row), (layout.starts[single], -1),
        (layout.rows[longer], spare_row), (offsets[longer], 0), (layout.starts[longer], 0), (counts[longer], 0),
        (blocks[0], bucket.chunks), (blocks[1], 0),
    )  # fmt: skip
    for part, (numbers, padding) in zip(into, given, strict=True):
        part[: len(numbers)] = numbers
        part[len(numbers) :] = padding


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    tokens: torch.Tensor


class MixedGraphs:
    """`forward(embeddings, positions, slots, wanted) → logits` is the model, `choose` as for `DecodeGraphs`; so are
    `table` and `last_tokens`, the runner's. All graphs share their inputs, and the logits `[rows, vocab]` they leave.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        choose: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        attention: TritonAttention,
        *,
        table: torch.Tensor,
        last_tokens: torch.Tensor,
        spare_slot: int,
        embedding: torch.Tensor,
        vocabulary: int,
        max_rows: int,
        max_tokens: int,
        sizes: tuple[int, ...] = _TOKENS,
    ) -> None:
        self._forward = forward
        self._choose = choose
        self._attention = attention
        self._table = table
        self._last_tokens = last_tokens
        self._spare_slot = spare_slot
        most = min(max_tokens, sizes[-1])
        self._sizes = sorted({size for size in sizes if size < most} | {most})
        self._decodes = sorted({rows for rows in _DECODES if rows < max_rows} | {max_rows})
        self._graphs: dict[Bucket, _Graph] = {}
        self._like = embedding
        self._vocabulary = vocabulary

    def bucket(self, layout: Layout) -> Bucket | None:
        """The smallest that has room for the step, if there is a graph of it. A graph chooses tokens, and reads nothing
        else."""
        if layout.targets or len(layout.heads):
            return None
        singles = int((layout.counts == 1).sum())
        chunks = len(layout.counts) - singles
        for size in self._sizes[bisect.bisect_left(self._sizes, len(layout.ids)) :][:_NEXT]:
            bucket = self._bucket(size, singles)
            if chunks <= bucket.chunks:
                return bucket if bucket in self._graphs else None
        return None

    def _bucket(self, tokens: int, singles: int) -> Bucket:
        rows = self._decodes[bisect.bisect_left(self._decodes, singles)]
        return Bucket(tokens, min(rows, tokens), self._attention.queries(tokens))

    def _buckets(self, sizes: list[int]) -> list[Bucket]:
        """All of these sizes, the largest first."""
        found = {self._bucket(size, min(rows, size)) for size in sizes for rows in self._decodes}
        return sorted(found, reverse=True)

    @torch.inference_mode()
    def capture(self) -> list[Bucket]:
        """Captures what pays: up to so many tokens that a graph takes less than `_PAYS` of launching them one by one.
        Some seconds.

        Gives those that could not be captured: such steps are launched. Raises what the last of them raised where none
        could be.
        """
        self._make_room()
        count = bisect.bisect_left(self._sizes, True, key=lambda size: not self._pays(size))
        self._sizes = self._sizes[:count]
        torch.cuda.empty_cache()  # each trial had memory of its own
        if not self._sizes:
            return []
        self._make_room()
        self._graphs, missing = capture_each(self._buckets(self._sizes), self._capture)
        return missing

    def _make_room(self) -> None:
        """What all graphs share, as large as the largest needs it."""
        buckets, device = self._buckets(self._sizes), self._table.device
        most = max(room(bucket) for bucket in buckets)
        self._embeddings = self._like.new_zeros((buckets[0].tokens, self._like.shape[1]))
        self._logits = self._like.new_empty((max(bucket.wanted for bucket in buckets), self._vocabulary))
        self._inputs = torch.zeros(most, dtype=torch.int32, device=device)
        self._staging = Ring((most,), torch.int32, device)

    def _pays(self, size: int) -> bool:
        bucket = self._buckets([size])[0]
        try:
            graph = self._capture(bucket, torch.cuda.graph_pool_handle()).graph
            return _seconds(graph.replay) < _PAYS * _seconds(lambda: self._step(bucket))
        except Exception as error:
            if not is_shortage(error):
                raise
            log.warning("no memory for a CUDA graph of a mixed step of %d tokens: %s", size, error)
            return False

    def _capture(self, bucket: Bucket, pool: Any) -> _Graph:
        self._pad(bucket)
        graph, tokens = captured(lambda: self._step(bucket), self._table.device, pool)
        return _Graph(graph, tokens)

    def _pad(self, bucket: Bucket) -> None:
        """The inputs of a step of nothing."""
        none = np.zeros(0, np.int64)
        layout = Layout(none, none, none, none, none, none, none, none, none, none, none, [], none, none, [])
        self._send(layout, bucket)

    def _send(self, layout: Layout, bucket: Bucket) -> None:
        buffer = self._staging.next()
        fill(
            parts(buffer.array, bucket), layout, bucket,
            spare_row=self._table.shape[0] - 1, spare_slot=self._spare_slot,
        )  # fmt: skip
        count = room(bucket)
        self._inputs[:count].copy_(buffer.tensor[:count], non_blocking=True)
        buffer.mark()

    def _step(self, bucket: Bucket) -> torch.Tensor:
        given: Inputs[torch.Tensor] = parts(self._inputs, bucket)
        splits = self._attention.splits(bucket.decodes)
        self._attention.begin_mixed(
            DecodeRows(self._table, given.rows, given.at, given.slots, splits), given.picked,
            (given.block_chunks, given.block_firsts), (given.chunk_rows, given.offsets, given.starts, given.counts),
            bucket.queries,
        )  # fmt: skip
        logits = self._forward(self._embeddings[: bucket.tokens], given.positions, given.slots, given.wanted)
        self._logits[: bucket.wanted].copy_(logits)
        return self._choose(logits, given.choosers, self._last_tokens)

    def replay(self, bucket: Bucket, layout: Layout, embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[wanted, vocab]` and greedy tokens of the step's wanted tokens, in order, both valid until the next
        replay. The tokens are kept, as `DecodeGraphs` keeps them."""
        self._send(layout, bucket)
        self._embeddings[: len(embeddings)].copy_(embeddings)
        graph = self._graphs[bucket]
        graph.graph.replay()
        wanted = len(layout.wanted)
        return self._logits[:wanted], graph.tokens[:wanted]


def _seconds(step: Callable[[], object]) -> float:
    times = []
    for _ in range(_TRIALS):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)
