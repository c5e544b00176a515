"""Weight-streaming products for a row or a few: at these sizes a product is a walk through its weights.

`y = x·Wᵀ` with `W [out, in]`. Each program takes a few output rows whole, sums in float32 along `in`, and (on Hopper)
begins to load its weights before the kernel ahead of it has ended (programmatic dependent launch).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def _stream(
    x_ptr, weight_ptr, bias_ptr, out_ptr, width, outputs,
    ROWS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * OUT + tl.arange(0, OUT)
    k = tl.arange(0, BLOCK)
    live = o < outputs
    place = weight_ptr + o.to(tl.int64)[:, None] * width + k[None, :]
    w = tl.load(place, mask=live[:, None] & (k < width)[None, :], other=0.0)
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()
    acc0 = tl.zeros([OUT, BLOCK], tl.float32)
    acc1 = tl.zeros([OUT, BLOCK], tl.float32)
    acc2 = tl.zeros([OUT, BLOCK], tl.float32)
    acc3 = tl.zeros([OUT, BLOCK], tl.float32)
    for at in range(0, width, BLOCK):
        if at > 0:
            w = tl.load(place + at, mask=live[:, None] & (at + k < width)[None, :], other=0.0)
        wide = w.to(tl.float32)
        inside = at + k < width
        acc0 += wide * tl.load(x_ptr + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if ROWS > 1:
            acc1 += wide * tl.load(x_ptr + width + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if ROWS > 2:
            acc2 += wide * tl.load(x_ptr + 2 * width + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if ROWS > 3:
            acc3 += wide * tl.load(x_ptr + 3 * width + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.zeros([OUT], tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + o, mask=live, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + o, (tl.sum(acc0, 1) + bias).to(kind), mask=live)
    if ROWS > 1:
        tl.store(out_ptr + outputs + o, (tl.sum(acc1, 1) + bias).to(kind), mask=live)
    if ROWS > 2:
        tl.store(out_ptr + 2 * outputs + o, (tl.sum(acc2, 1) + bias).to(kind), mask=live)
    if ROWS > 3:
        tl.store(out_ptr + 3 * outputs + o, (tl.sum(acc3, 1) + bias).to(kind), mask=live)


STREAM_ROWS = 4


def stream(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    outputs_each: int = 8,
    pdl: bool = False,
) -> torch.Tensor:
    """`x [rows ≤ 4, in]`, `weight [out, in]` contiguous → `[rows, out]`. `outputs_each` output rows a program."""
    rows, width = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    each = outputs_each if rows == 1 else max(2, outputs_each // rows)
    extra = {"launch_pdl": True} if pdl else {}
    _stream[(triton.cdiv(outputs, each),)](
        x, weight, bias if bias is not None else x, out, width, outputs,
        ROWS=rows, OUT=each, BLOCK=block, BIAS=bias is not None, PDL=pdl, num_warps=8, num_stages=3, **extra,
    )  # fmt: skip
    return out
