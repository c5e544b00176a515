"""A layer's sum over GPUs, the residual's and the norm behind it in one launch: each reads the others' rows itself."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options

_TURNS = 1 << 24
"""Looks at another GPU's flag before it is given up, many seconds later: the row is then NaN, and fails in words."""


@triton.jit
def _sum_add_norm(
    x_ptr, rooms_ptr, flags_ptr, residual_ptr, weight_ptr, out_ptr, begin, rows, width, eps, TURNS,
    RANK: tl.constexpr, SIZE: tl.constexpr, EACH: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    program = tl.program_id(0).to(tl.int64)
    first = program * EACH
    at = tl.arange(0, BLOCK)
    live = at < width
    own = tl.load(rooms_ptr + RANK).to(tl.pointer_type(x_ptr.dtype.element_ty))
    for i in tl.static_range(EACH):
        row = first + i
        here = live & (row < rows)
        x = tl.load(x_ptr + row * width + at, mask=here, other=0.0)
        tl.store(own + begin + row * width + at, x, mask=here)
    tl.debug_barrier()
    missing = 0
    for peer in tl.static_range(SIZE):  # the rows lie there: says so to each, once it has seen what was said before
        if peer != RANK:
            flag = tl.load(flags_ptr + peer).to(tl.pointer_type(tl.int32)) + program * SIZE + RANK
            turns = 0
            seen = tl.atomic_cas(flag, 0, 1, sem="release", scope="sys")
            while (seen != 0) & (turns < TURNS):
                seen = tl.atomic_cas(flag, 0, 1, sem="release", scope="sys")
                turns += 1
            missing += (seen != 0).to(tl.int32)
    for peer in tl.static_range(SIZE):
        if peer != RANK:
            flag = tl.load(flags_ptr + RANK).to(tl.pointer_type(tl.int32)) + program * SIZE + peer
            turns = 0
            seen = tl.atomic_cas(flag, 1, 0, sem="acquire", scope="sys")
            while (seen != 1) & (turns < TURNS):
                seen = tl.atomic_cas(flag, 1, 0, sem="acquire", scope="sys")
                turns += 1
            missing += (seen != 1).to(tl.int32)
    tl.debug_barrier()
    weight = tl.load(weight_ptr + at, mask=live, other=0.0)
    for i in tl.static_range(EACH):
        row = first + i
        here = live & (row < rows)
        x = tl.load(x_ptr + row * width + at, mask=here, other=0.0)
        total = tl.zeros([BLOCK], tl.float32)
        for peer in tl.static_range(SIZE):  # in the ranks' order: the same bits on each
            if peer == RANK:
                total += x.to(tl.float32)
            else:
                room = tl.load(rooms_ptr + peer).to(tl.pointer_type(x_ptr.dtype.element_ty))
                part = tl.load(room + begin + row * width + at, mask=here, other=0.0, volatile=True)
                total += part.to(tl.float32)
        total = tl.where(missing > 0, float("nan"), total)
        summed = tl.load(residual_ptr + row * width + at, mask=here, other=0.0) + total.to(x.dtype)
        summed = summed.to(x.dtype)
        tl.store(residual_ptr + row * width + at, summed, mask=here)
        wide = summed.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
        tl.store(out_ptr + row * width + at, (wide * scale).to(x.dtype) * weight, mask=here)


def sum_add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, rooms: torch.Tensor,
    flags: torch.Tensor, begin: int, rank: int, size: int, each: int,
) -> torch.Tensor:  # fmt: skip
    """RMSNorm of `residual +` the sum of all ranks' `x [rows, width]`, which is left in `residual`. `each` rows a
    program: a program says once that its rows are there, and that is what takes the time.

    `rooms` and `flags` `[size]` int64: addresses of each rank's room for rows, and of its int32 flags, `[programs,
    size]`, all 0 between calls. The rows' copies lie from number `begin` of the room on: not where the call before had
    them, so that a rank which is ahead writes over nothing that another still reads.
    """
    out = torch.empty_like(x)
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _sum_add_norm[(triton.cdiv(rows, each),)](
        x, rooms, flags, residual, weight, out, begin, rows, width, eps, _TURNS,
        RANK=rank, SIZE=size, EACH=each, BLOCK=block, num_warps=min(16, max(1, block // 512)), **pdl_options(x),
    )  # fmt: skip
    return out
