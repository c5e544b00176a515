"""Weight-streaming products for a row or a few: at these sizes a product is a walk through its weights.

`y = x·Wᵀ` with `W [out, in]`. Each program takes a few output rows whole, sums in float32 along `in`, and (on Hopper)
begins to load its weights before the kernel ahead of it has ended (programmatic dependent launch). How much of the
weights is on its way at a time is what decides, and another card wants another `Walk`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options
from softmux.engine.kernels.layer import silu_times


@triton.jit
def _stream(
    x_ptr, weight_ptr, bias_ptr, out_ptr, width, outputs,
    ROWS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, BIAS: tl.constexpr,
    PDL: tl.constexpr,
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
        if AHEAD:
            next = tl.load(place + at + BLOCK, mask=live[:, None] & (at + BLOCK + k < width)[None, :], other=0.0)
        elif at > 0:
            w = tl.load(place + at, mask=live[:, None] & (at + k < width)[None, :], other=0.0)
        wide = w.to(tl.float32)
        inside = at + k < width
        first += wide * tl.load(x_ptr + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if ROWS > 1:
            second += wide * tl.load(x_ptr + width + at + k, mask=inside, other=0.0).to(tl.float32)[None, :]
        if AHEAD:
            w = next
    bias = tl.zeros([OUT], tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + o, mask=live, other=0.0).to(tl.float32)
    kind = out_ptr.dtype.element_ty
    tl.store(out_ptr + o, (tl.sum(first, 1) + bias).to(kind), mask=live)
    if ROWS > 1:
        tl.store(out_ptr + outputs + o, (tl.sum(second, 1) + bias).to(kind), mask=live)


@triton.jit
def _stream_gated(
    x_ptr, weight_ptr, out_ptr, width, outputs,
    ROWS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
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
        if AHEAD:
            mask = live[:, None] & (at + BLOCK + k < width)[None, :]
            next_gate = tl.load(gate_place + at + BLOCK, mask=mask, other=0.0)
            next_up = tl.load(up_place + at + BLOCK, mask=mask, other=0.0)
        elif at > 0:
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
        if AHEAD:
            gate = next_gate
            up = next_up
    kind: tl.constexpr = out_ptr.dtype.element_ty
    tl.store(out_ptr + o, silu_times(tl.sum(gate_one, 1), tl.sum(up_one, 1), kind), mask=live)
    if ROWS > 1:
        tl.store(out_ptr + outputs + o, silu_times(tl.sum(gate_two, 1), tl.sum(up_two, 1), kind), mask=live)


STREAM_ROWS = 2


class Walk(NamedTuple):
    """How a product's weights are walked through."""

    outputs: int
    """Output rows a program, a power of two."""
    block: int
    """Weights of a row at a time at most, a power of two."""
    warps: int
    ahead: bool
    """The next weights are asked for before these are multiplied."""

    def __str__(self) -> str:
        return f"{self.outputs} x {self.block}, {self.warps} warps" + (", ahead" if self.ahead else "")


PLAIN = Walk(8, 1024, 8, False)


def stream(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, *, walk: Walk = PLAIN
) -> torch.Tensor:
    """`x [rows ≤ 2, in]`, `weight [out, in]` contiguous → `[rows, out]`."""
    rows, width = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    _stream[(triton.cdiv(outputs, walk.outputs),)](
        x, weight, bias if bias is not None else x, out, width, outputs,
        ROWS=rows, OUT=walk.outputs, BLOCK=min(walk.block, triton.next_power_of_2(width)), AHEAD=walk.ahead,
        BIAS=bias is not None, num_warps=walk.warps, num_stages=3, **pdl_options(x),
    )  # fmt: skip
    return out


def stream_gated(x: torch.Tensor, weight: torch.Tensor, *, walk: Walk = PLAIN) -> torch.Tensor:
    """`x [rows ≤ 2, in]`, `weight [2·inner, in]` (gate rows, then up rows) → silu(gate)·up `[rows, inner]`, in one
    launch. Half of the walk's rows are the gate's."""
    rows, width = x.shape
    inner = weight.shape[0] // 2
    each = max(1, walk.outputs // 2)
    out = torch.empty((rows, inner), dtype=x.dtype, device=x.device)
    _stream_gated[(triton.cdiv(inner, each),)](
        x, weight, out, width, inner,
        ROWS=rows, OUT=each, BLOCK=min(walk.block, triton.next_power_of_2(width)), AHEAD=walk.ahead,
        num_warps=walk.warps, num_stages=3, **pdl_options(x),
    )  # fmt: skip
    return out
