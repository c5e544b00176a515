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


@triton.jit
def _silu_times(gate, up, KIND: tl.constexpr):
    """silu(gate)·up of float32 sums, rounded where separate launches would round."""
    gate = gate.to(KIND).to(tl.float32)
    act = (gate / (1.0 + tl.exp(-gate))).to(KIND).to(tl.float32)
    return (act * up.to(KIND).to(tl.float32)).to(KIND)


@triton.jit
def _stream_gated(
    x_ptr, weight_ptr, out_ptr, width, outputs,
    ROWS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * OUT + tl.arange(0, OUT)
    k = tl.arange(0, BLOCK)
    live = o < outputs
    gate_place = weight_ptr + o.to(tl.int64)[:, None] * width + k[None, :]
    up_place = weight_ptr + (o + outputs).to(tl.int64)[:, None] * width + k[None, :]
    mask = live[:, None] & (k < width)[None, :]
    gate = tl.load(gate_place, mask=mask, other=0.0)
    up = tl.load(up_place, mask=mask, other=0.0)
    follows(PDL)  # the first weights are on their way by now
    gate_one = tl.zeros([OUT, BLOCK], tl.float32)
    up_one = tl.zeros([OUT, BLOCK], tl.float32)
    gate_two = tl.zeros([OUT, BLOCK], tl.float32)
    up_two = tl.zeros([OUT, BLOCK], tl.float32)
    for at in range(0, width, BLOCK):
        if at > 0:
            mask = live[:, None] & (at + k < width)[None, :]
            gate = tl.load(gate_place + at, mask=mask, other=0.0)
            up = tl.load(up_place + at, mask=mask, other=0.0)
        inside = at + k < width
        x = tl.load(x_ptr + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        gate_one += gate.to(tl.float32) * x
        up_one += up.to(tl.float32) * x
        if ROWS > 1:
            x = tl.load(x_ptr + width + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
            gate_two += gate.to(tl.float32) * x
            up_two += up.to(tl.float32) * x
    kind: tl.constexpr = out_ptr.dtype.element_ty
    tl.store(out_ptr + o, _silu_times(tl.sum(gate_one, 1), tl.sum(up_one, 1), kind), mask=live)
    if ROWS > 1:
        tl.store(out_ptr + outputs + o, _silu_times(tl.sum(gate_two, 1), tl.sum(up_two, 1), kind), mask=live)


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
    _stream[(triton.cdiv(outputs, outputs_each),)](
        x, weight, bias if bias is not None else x, out, width, outputs,
        ROWS=rows, OUT=outputs_each, BLOCK=min(1024, triton.next_power_of_2(width)), BIAS=bias is not None,
        num_warps=8, num_stages=3, **pdl_options(x),
    )  # fmt: skip
    return out


def stream_gated(x: torch.Tensor, weight: torch.Tensor, *, outputs_each: int = 8) -> torch.Tensor:
    """`x [rows ≤ 2, in]`, `weight [2·inner, in]` (gate rows, then up rows) → silu(gate)·up `[rows, inner]`, in one
    launch. `outputs_each` rows of the weight a program."""
    rows, width = x.shape
    inner = weight.shape[0] // 2
    each = max(1, outputs_each // 2)
    out = torch.empty((rows, inner), dtype=x.dtype, device=x.device)
    _stream_gated[(triton.cdiv(inner, each),)](
        x, weight, out, width, inner,
        ROWS=rows, OUT=each, BLOCK=min(1024, triton.next_power_of_2(width)), num_warps=8, num_stages=3,
        **pdl_options(x),
    )  # fmt: skip
    return out
