"""Weight-streaming products for a row or a few: at these sizes a product is a walk through its weights.

`y = x·Wᵀ` with `W [out, in]`. Each program takes a few output rows whole, sums in float32 along `in`, and (on Hopper)
begins to load its weights before the kernel ahead of it has ended (programmatic dependent launch).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options


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
    follows(PDL)  # the first weights are on their way by now
    first = tl.zeros([OUT, BLOCK], tl.float32)
    second = tl.zeros([OUT, BLOCK], tl.float32)
    for at in range(0, width, BLOCK):
        if at > 0:
            w = tl.load(place + at, mask=live[:, None] & (at + k < width)[None, :], other=0.0)
        wide = w.to(tl.float32)
        inside = at + k < width
        first += wide * tl.load(x_ptr + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if ROWS > 1:
            second += wide * tl.load(x_ptr + width + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
    bias = tl.zeros([OUT], tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + o, mask=live, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + o, (tl.sum(first, 1) + bias).to(kind), mask=live)
    if ROWS > 1:
        tl.store(out_ptr + outputs + o, (tl.sum(second, 1) + bias).to(kind), mask=live)


STREAM_ROWS = 2


def stream(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    outputs_each: int = 8,
) -> torch.Tensor:
    """`x [rows ≤ 2, in]`, `weight [out, in]` contiguous → `[rows, out]`. `outputs_each` output rows a program (a power
    of two)."""
    rows, width = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    block = min(1024, triton.next_power_of_2(width))
    _stream[(triton.cdiv(outputs, outputs_each),)](
        x, weight, bias if bias is not None else x, out, width, outputs,
        ROWS=rows, OUT=outputs_each, BLOCK=block, BIAS=bias is not None, num_warps=8, num_stages=3, **pdl_options(x),
    )  # fmt: skip
    return out
