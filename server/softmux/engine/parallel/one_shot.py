"""Small sums over the GPUs of one host: each reads the others' numbers out of their memory itself, in one launch.

NCCL's all-reduce of a decode step's few kilobytes is all latency, twice a layer. torch's symmetric memory has a kernel
that takes about half of it (`symm_mem.one_shot_all_reduce`); no NVLink multicast is needed or used.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from softmux.engine.parallel.ranks import Ranks

log = logging.getLogger(__name__)

_ROOM = 4 << 20
_SIZES = (16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20)
_CALLS = 40


class OneShot:
    """`sums(x)` for `x` up to `limit` bytes, of the dtype it was made for; None for others."""

    def __init__(self, ranks: Ranks, dtype: torch.dtype) -> None:
        """Raises where the GPUs can't read each other's memory."""
        import torch.distributed._symmetric_memory as symmetric

        self._group = str(ranks.group.group_name)
        self._buffer = symmetric.empty(_ROOM // dtype.itemsize, dtype=dtype, device=ranks.device)
        self._handle: Any = symmetric.rendezvous(self._buffer, ranks.group)
        self.limit = _ROOM

    def sums(self, x: torch.Tensor) -> torch.Tensor | None:
        if x.nbytes > self.limit or x.dtype != self._buffer.dtype or x.nbytes % 16 or x.data_ptr() % 16:
            return None
        if not x.is_contiguous():
            return None
        room = self._buffer[: x.numel()].view(x.shape)
        summed: torch.Tensor = torch.ops.symm_mem.one_shot_all_reduce_copy(room, x, "sum", self._group)
        return summed


@torch.inference_mode()
def take_one_shot(ranks: Ranks, dtype: torch.dtype) -> None:
    """Lets `ranks` sum by it whatever it is faster for here than NCCL, if it is right; the log says which. All ranks
    call it at the same time."""
    failed: Exception | None = None
    try:
        one_shot = OneShot(ranks, dtype)
    except Exception as error:
        failed = error
    failed = ranks.judge(failed)
    if failed is not None:
        log.warning("sums over GPUs go through NCCL: %s", failed)
        return
    faster, told = 0, []
    for size in _SIZES:
        x = torch.randn(size // dtype.itemsize, device=ranks.device).to(dtype)
        summed = one_shot.sums(x)
        expected = ranks.reduce(x.clone())
        right = summed is not None and torch.allclose(summed.float(), expected.float(), rtol=2e-2, atol=2e-2)
        if not ranks.agree(right):
            log.warning("sums over GPUs go through NCCL: the one-shot kernel gave others")
            return
        ours, theirs = (_microseconds(call, x, ranks) for call in (one_shot.sums, ranks.reduce))
        told.append(f"{size >> 10} KiB {ours:.1f} µs, NCCL {theirs:.1f}")
        if ranks.agree(ours < theirs):
            faster = size
        else:
            break
    log.info("sums over GPUs: %s", "; ".join(told))
    if faster:
        one_shot.limit = faster
        ranks.pairwise = one_shot.sums


def _microseconds(call: Any, x: torch.Tensor, ranks: Ranks) -> float:
    """A call's, in a captured chain of them; the slowest rank's."""
    stream = torch.cuda.Stream(ranks.device)
    stream.wait_stream(torch.cuda.current_stream(ranks.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(x)
    torch.cuda.current_stream(ranks.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_CALLS):
            call(x)
    graph.replay()
    torch.cuda.synchronize(ranks.device)
    ranks.agree(True)
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(5):
        graph.replay()
    end.record()
    end.synchronize()
    microseconds = begin.elapsed_time(end) * 1000 / 5 / _CALLS
    return -ranks.least(-round(microseconds * 1000)) / 1000
