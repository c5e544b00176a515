"""Small sums over the GPUs of one host: each reads the others' numbers out of their memory itself, in one launch.

NCCL's all-reduce of a decode step's few kilobytes is all latency, twice a layer. torch's symmetric memory has a kernel
that takes less (`symm_mem.one_shot_all_reduce`); within the fused layers one of ours adds the residual and norms, too.
No NVLink multicast is needed or used. Each way is compared with NCCL at load, and left where it is wrong or slower.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from softmux.engine.parallel.ranks import Ranks

log = logging.getLogger(__name__)

_ROOM = 4 << 20
_SIZES = (16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20)
_CALLS = 40
_ROUNDING = 0.2
"""Of numbers about 1 in half precision, summed and normed."""
_ROWS = 128
"""Rows of a step whose sums are taken with its norms, at most: each may have a program, and all must run at once."""
_BUCKETS = (1, 4, 16, 32, 64, _ROWS)
_EACH = (1, 2, 4, 8)


class OneShot:
    """`sums(x)` for `x` up to `limit` bytes, of the dtype it was made for; None for others."""

    def __init__(self, ranks: Ranks, dtype: torch.dtype) -> None:
        """Raises where the GPUs can't read each other's memory."""
        import torch.distributed._symmetric_memory as symmetric

        if dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f"torch's one-shot kernel knows no {dtype}")
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


class NormedSums:
    """A layer's sums with the norm behind each. Calls take turns by `half`, 0 and 1: never the same twice in a row."""

    def __init__(self, ranks: Ranks, dtype: torch.dtype, width: int) -> None:
        """Raises where the GPUs can't read each other's memory, or there is no Triton."""
        import torch.distributed._symmetric_memory as symmetric

        if importlib.util.find_spec("triton") is None:
            raise ModuleNotFoundError("Triton is not installed")
        self._ranks, self.dtype, self.width = ranks, dtype, width
        self.each: dict[int, int] = {}
        """Rows a program, by the number of rows up to which that is fastest; a number that it lacks goes apart."""
        self._room = symmetric.empty(2 * _ROWS * width, dtype=dtype, device=ranks.device)
        self._flags = symmetric.empty(_ROWS * ranks.size, dtype=torch.int32, device=ranks.device)
        self._flags.zero_()
        torch.cuda.synchronize(ranks.device)
        self._handles: list[Any] = [symmetric.rendezvous(part, ranks.group) for part in (self._room, self._flags)]
        self._addresses = [
            _addresses(part, handle, ranks)
            for part, handle in zip((self._room, self._flags), self._handles, strict=True)
        ]
        torch.cuda.synchronize(ranks.device)
        ranks.agree(True)  # every flag is 0 before any is raised

    def fits(self, x: torch.Tensor) -> bool:
        return self._bucket(x.shape[0]) in self.each and x.shape[1] == self.width and x.dtype == self.dtype

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, half: int
    ) -> torch.Tensor:
        """The norm of `residual` with all ranks' `x` added to it, in place. `x` fits."""
        return self.run(x, residual, weight, eps, half, self.each[self._bucket(x.shape[0])])

    def run(
        self, x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, half: int, each: int
    ) -> torch.Tensor:
        from softmux.engine.kernels.rank_sum import sum_add_norm

        rooms, flags = self._addresses
        begin = half * _ROWS * self.width
        return sum_add_norm(
            x.contiguous(), residual, weight, eps, rooms, flags, begin, self._ranks.rank, self._ranks.size, each
        )

    @staticmethod
    def _bucket(rows: int) -> int:
        return next((most for most in _BUCKETS if rows <= most), 0)


def _addresses(part: torch.Tensor, handle: Any, ranks: Ranks) -> torch.Tensor:
    """Where each rank has the tensor that is `part` here, `[size]` int64."""
    begins = [int(pointer) for pointer in handle.buffer_ptrs]
    within = part.data_ptr() - begins[ranks.rank]
    if not 0 <= within < int(handle.buffer_size):
        raise ValueError("torch's symmetric memory lies elsewhere than it says")
    return torch.tensor([begin + within for begin in begins], dtype=torch.int64, device=ranks.device)


@torch.inference_mode()
def take_one_shot(ranks: Ranks, dtype: torch.dtype) -> None:
    """Lets `ranks` sum by it whatever it is faster for here than NCCL, if it is right; the log says which. All ranks
    call it at the same time."""
    made: list[OneShot] = []
    if (failed := _together(ranks, lambda: made.append(OneShot(ranks, dtype)))) is not None:
        log.warning("sums over GPUs go through NCCL: %s", failed)
        return
    one_shot = made[0]
    faster, told = 0, []
    for size in _SIZES:
        x = torch.randn(size // dtype.itemsize, device=ranks.device).to(dtype)
        summed = one_shot.sums(x)
        expected = ranks.reduce(x.clone())
        right = summed is not None and torch.allclose(summed.float(), expected.float(), rtol=2e-2, atol=2e-2)
        if not ranks.agree(right):
            log.warning("sums over GPUs go through NCCL: the one-shot kernel gave others")
            return
        ours, theirs = (_microseconds(ranks, lambda call=call, x=x: call(x)) for call in (one_shot.sums, ranks.reduce))  # type: ignore[misc]
        told.append(f"{size >> 10} KiB {ours:.1f} µs, NCCL {theirs:.1f}")
        if not ranks.agree(ours < theirs):
            break
        faster = size
    log.info("sums over GPUs: %s", "; ".join(told))
    if faster:
        one_shot.limit = faster
        ranks.pairwise = one_shot.sums


@torch.inference_mode()
def take_normed_sums(
    ranks: Ranks, dtype: torch.dtype, width: int, norm: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    weight: torch.Tensor, eps: float,
) -> None:  # fmt: skip
    """Lets the fused layers take sums and norms in one launch, if it is right and faster. `norm(x, residual)` is how it
    is done else, of a sum, by this `weight`."""
    made: list[NormedSums] = []
    if (failed := _together(ranks, lambda: made.append(NormedSums(ranks, dtype, width)))) is not None:
        log.warning("sums and norms are launches of their own: %s", failed)
        return
    sums = made[0]
    draw = torch.Generator(ranks.device).manual_seed(ranks.rank)
    shared = torch.Generator(ranks.device).manual_seed(1000)
    if (failed := _together(ranks, lambda: _prove(ranks, sums, norm, weight, eps, draw, shared))) is not None:
        log.warning("sums and norms are launches of their own: %s", failed)
        return
    told = []
    for rows in _BUCKETS:
        x = torch.randn((rows, width), device=ranks.device, generator=draw).to(dtype)
        residual = torch.zeros_like(x)

        def both(each: int, x: torch.Tensor = x, residual: torch.Tensor = residual) -> None:
            for half in (0, 1):
                sums.run(x, residual, weight, eps, half, each)

        def apart(x: torch.Tensor = x, residual: torch.Tensor = residual) -> None:
            for _ in (0, 1):
                norm(ranks.reduce(x), residual)

        ours = {each: _microseconds(ranks, partial(both, each)) / 2 for each in _EACH if each <= rows}
        theirs, best = _microseconds(ranks, apart) / 2, min(ours, key=ours.__getitem__)
        told.append(
            f"{rows} rows {', '.join(f'{each}: {time:.1f}' for each, time in ours.items())} µs, apart {theirs:.1f}"
        )
        if ranks.agree(ours[best] < theirs):
            sums.each[rows] = best
    ranks.normed = sums if sums.each else None
    log.info("sums with norms over GPUs: %s", "; ".join(told))


def _prove(
    ranks: Ranks, sums: NormedSums, norm: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weight: torch.Tensor,
    eps: float, draw: torch.Generator, shared: torch.Generator,
) -> None:  # fmt: skip
    """Many calls in a row, as layers make them. Raises where one differs."""
    for turn in range(60):
        rows = (1, 3, 64, _ROWS)[turn % 4]
        x = torch.randn((rows, sums.width), device=ranks.device, generator=draw).to(sums.dtype)
        residual = torch.randn((rows, sums.width), device=ranks.device, generator=shared).to(sums.dtype)
        kept = residual.clone()
        ours = sums.run(x, residual, weight, eps, turn % 2, _EACH[turn // 4 % len(_EACH)])
        expected = norm(ranks.reduce(x.clone()), kept)
        pairs = torch.stack([ours, residual]).float(), torch.stack([expected, kept]).float()
        apart = float((pairs[0] - pairs[1]).abs().max())
        if not ranks.agree(apart < _ROUNDING):  # all stop at the same call, or some would wait for the others
            raise ValueError(f"{rows} rows differ by {apart:.3g} here")


def _together(ranks: Ranks, call: Callable[[], object]) -> Exception | None:
    """What was raised here, or elsewhere."""
    failed: Exception | None = None
    try:
        call()
    except Exception as error:
        failed = error
    return ranks.judge(failed)


def _microseconds(ranks: Ranks, call: Callable[[], object]) -> float:
    """A call's, in a captured chain of them; the slowest rank's."""
    stream = torch.cuda.Stream(ranks.device)
    stream.wait_stream(torch.cuda.current_stream(ranks.device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream(ranks.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(_CALLS):
            call()
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
