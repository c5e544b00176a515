"""CUDA graphs of decode steps: one for each of a few sizes, replayed with a single copy of inputs."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from softmux.engine.attention.base import DecodeRows
from softmux.engine.staging import Ring
from softmux.scheduler.rows import Step

if TYPE_CHECKING:  # Triton is there on GPU machines only
    from softmux.engine.attention.triton_paged import TritonAttention

log = logging.getLogger(__name__)
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
G = TypeVar("G")

_SIZES = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)


@dataclass(slots=True)
class _Graph:
    graph: torch.cuda.CUDAGraph
    inputs: torch.Tensor
    """`[4, size]` int32: ids, table rows, positions, slots, as in `scheduler.rows.Step`."""
    staging: Ring
    logits: torch.Tensor
    tokens: torch.Tensor


class DecodeGraphs:
    """`replay` pads a step to the next size. Padding rows use the table's last row and the pool's spare slot, so they
    read and write nobody's KV.

    `begin(inputs, table, last_tokens) → embeddings` books the step's slots and looks its tokens up,
    `forward(embeddings, positions, slots) → logits` is the model, `choose(logits, rows, last_tokens) → tokens` chooses
    greedily (−1 where a row is not finite) and keeps the choice; `table` and `last_tokens` are the runner's.
    """

    def __init__(
        self,
        begin: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        forward: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        choose: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        attention: TritonAttention,
        *,
        table: torch.Tensor,
        last_tokens: torch.Tensor,
        spare_slot: int,
        max_rows: int,
        sizes: tuple[int, ...] = _SIZES,
    ) -> None:
        self._begin = begin
        self._forward = forward
        self._choose = choose
        self._attention = attention
        self._table = table
        self._last_tokens = last_tokens
        self._padding = np.array([[0], [table.shape[0] - 1], [0], [spare_slot]], np.int32)
        self._sizes = sorted({size for size in sizes if size < max_rows} | {max_rows})
        self._graphs: dict[int, _Graph] = {}
        self._pool: Any = None

    def fits(self, rows: int) -> bool:
        return bool(self._sizes) and rows <= self._sizes[-1]

    def capture_for(self, rows: int) -> None:
        """Captures the graph that a step of `rows` rows takes, if it is not there yet: while others may run, from the
        thread that launches them."""
        size = self._sizes[bisect.bisect_left(self._sizes, rows)]
        if size not in self._graphs:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            self._graphs[size] = self._capture(size, self._pool)

    def capture(self) -> list[int]:
        """Captures every size, the largest first so that all share its memory. A few seconds.

        Gives the sizes that could not be captured: steps of such a size take the next larger graph, or none. Raises
        what the last of them raised where no size could be.
        """
        self._graphs, missing = capture_each(self._sizes[::-1], self._capture)
        self._sizes = sorted(self._graphs)
        return missing

    @torch.inference_mode()
    def _capture(self, size: int, pool: Any) -> _Graph:
        device = self._table.device
        inputs = torch.from_numpy(self._padding.repeat(size, axis=1)).to(device)
        staging = Ring((4, size), torch.int32, device)
        graph, (logits, tokens) = captured(lambda: self._step(inputs), device, pool)
        return _Graph(graph, inputs, staging, logits, tokens)

    def _step(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, rows, positions, slots = inputs.unbind(0)
        embeddings = self._begin(inputs, self._table, self._last_tokens)
        splits = self._attention.splits(inputs.shape[1])
        self._attention.begin_decode(DecodeRows(self._table, rows, positions, slots, splits))
        logits = self._forward(embeddings, positions, slots)
        return logits, self._choose(logits, rows, self._last_tokens)

    def replay(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[rows, vocab]` and greedy tokens `[rows]` (−1 where not finite), both valid until the next replay."""
        count = step.shape[1]
        graph = self._graphs[self._sizes[bisect.bisect_left(self._sizes, count)]]
        buffer = graph.staging.next()
        pad(buffer.array, step, self._padding)
        graph.inputs.copy_(buffer.tensor, non_blocking=True)
        buffer.mark()
        graph.graph.replay()
        return graph.logits[:count], graph.tokens[:count]


def capture_each(sizes: Sequence[K], capture: Callable[[K, Any], G]) -> tuple[dict[K, G], list[K]]:
    """Graphs of these sizes, which share a pool's memory where the largest comes first, and the sizes that could not be
    captured. Raises what the last of them raised where none could be."""
    pool = torch.cuda.graph_pool_handle()
    graphs: dict[K, G] = {}
    missing = []
    for size in sizes:
        try:
            graphs[size] = capture(size, pool)
        except Exception as error:
            log.warning("no CUDA graph of size %s: %s", size, error)
            missing.append(size)
            if len(missing) == len(sizes):
                raise
    return graphs, missing


def captured(step: Callable[[], T], device: torch.device, pool: Any) -> tuple[torch.cuda.CUDAGraph, T]:
    """A graph of `step`, in `pool`'s memory, and what it gives: valid after each replay until another of that pool."""
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # kernels compile and libraries set up outside the capture
        step()
        step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # other threads go on, and may page-lock memory meanwhile
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = step()
    return graph, result


def pad(into: Step, step: Step, padding: Step) -> None:
    """`step`, and behind it copies of the column `padding`, as far as `into` reaches."""
    count = step.shape[1]
    into[:, :count] = step
    into[:, count:] = padding
