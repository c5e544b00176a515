"""Products of some rows by `tl.dot`, for weights of x's own dtype and for such in e4m3 with a scale for each output.

The weight is the product's left side: in e4m3 it is turned into x's dtype in registers and need not go back to shared
memory, and few rows cost few columns. Where a product has too few outputs for all of the card, several programs share
a sum (split-K), and a second launch adds it up.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options
from softmux.engine.kernels.layer import silu_times


@triton.jit
def _to_bfloat16(w):
    """Exact, by way of float32: the card's own conversion from half precision goes through a slow unit."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b32 both;
        .reg .b16 h<2>;
        .reg .f32 f<2>;
        cvt.rn.f16x2.e4m3x2 both, $1;
        mov.b32 {h0, h1}, both;
        cvt.f32.f16 f0, h0;
        cvt.f32.f16 f1, h1;
        cvt.rn.bf16x2.f32 $0, f1, f0;
        }""",
        constraints="=r,h",
        args=[w.to(tl.uint8, bitcast=True)],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=2,
    )


class Tile(NamedTuple):
    """How `dot` cuts a product: outputs a program, numbers along `in` at a time, programs that share a sum, warps,
    stages."""

    outputs: int
    block: int
    splits: int
    warps: int
    stages: int

    def __str__(self) -> str:
        return f"{self.outputs} x {self.block}, {self.splits} splits, {self.warps} warps, {self.stages} stages"


@triton.jit(do_not_specialize=["rows"])  # no step waits for a variant to be compiled
def _dot(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, partial_ptr, rows, width, outputs, span,
    OUT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, EVEN: tl.constexpr, SPLITS: tl.constexpr,
    GATED: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, ASM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tl.program_id(1) * OUT + tl.arange(0, OUT)
    begin = tl.program_id(2) * span
    k = tl.arange(0, BLOCK)
    # Rows and outputs beyond the last read the last again: they cost nothing and are not stored.
    w_row = tl.minimum(o, outputs - 1)
    if GATED:  # each gate beside its up
        w_row = w_row // 2 + w_row % 2 * (outputs // 2)
    x_place = x_ptr + tl.minimum(r, rows - 1).to(tl.int64)[:, None] * width + k[None, :]
    w_place = weight_ptr + w_row.to(tl.int64)[:, None] * width + k[None, :]
    acc = tl.zeros([OUT, ROWS], tl.float32)
    for at in range(begin, tl.minimum(begin + span, width), BLOCK):
        if EVEN:
            w = tl.load(w_place + at)
            x = tl.load(x_place + at)
        else:
            inside = (at + k < width)[None, :]
            w = tl.load(w_place + at, mask=inside, other=0.0)
            x = tl.load(x_place + at, mask=inside, other=0.0)
        left = _to_bfloat16(w) if ASM else w.to(x.dtype)
        acc = tl.dot(left, tl.trans(x), acc, input_precision="ieee")
    place = r.to(tl.int64)[None, :] * outputs + o[:, None]
    live = (o < outputs)[:, None] & (r < rows)[None, :]
    if GATED:
        gate, up = tl.split(tl.permute(tl.reshape(acc, [OUT // 2, 2, ROWS]), (0, 2, 1)))
        half = tl.program_id(1) * (OUT // 2) + tl.arange(0, OUT // 2)
        place = r.to(tl.int64)[None, :] * (outputs // 2) + half[:, None]
        both = silu_times(gate, up, out_ptr.dtype.element_ty)
        tl.store(out_ptr + place, both, mask=(half < outputs // 2)[:, None] & (r < rows)[None, :])
    elif SPLITS == 1:
        if SCALED:
            acc *= tl.load(scale_ptr + o, mask=o < outputs, other=0.0)[:, None]
        if BIAS:
            acc += tl.load(bias_ptr + o, mask=o < outputs, other=0.0).to(tl.float32)[:, None]
        tl.store(out_ptr + place, acc.to(out_ptr.dtype.element_ty), mask=live)
    else:
        tl.store(partial_ptr + tl.program_id(2).to(tl.int64) * rows * outputs + place, acc, mask=live)


@triton.jit(do_not_specialize=["rows"])
def _add_splits(
    partial_ptr, scale_ptr, bias_ptr, out_ptr, rows, outputs,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = o < outputs
    total = tl.zeros([BLOCK], tl.float32)
    for split in tl.static_range(SPLITS):  # always in this order, so that a row's numbers are the same every time
        total += tl.load(partial_ptr + (split * rows + row) * outputs + o, mask=live, other=0.0)
    if SCALED:
        total *= tl.load(scale_ptr + o, mask=live, other=0.0)
    if BIAS:
        total += tl.load(bias_ptr + o, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * outputs + o, total.to(out_ptr.dtype.element_ty), mask=live)


def dot(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    tile: Tile,
    *,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x [rows, in]`, any number of rows; `weight [out, in]` contiguous, in x's dtype, or in e4m3 with its float32
    `scale [out]` → `[rows, out]`."""
    rows, width = x.shape
    outputs = weight.shape[0]
    span = triton.cdiv(triton.cdiv(width, tile.splits), tile.block) * tile.block
    splits = triton.cdiv(width, span)
    columns, grid = _grid(rows, outputs, tile)
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    partial = out
    if splits > 1:
        partial = torch.empty((splits, rows, outputs), dtype=torch.float32, device=x.device)
    factor, given = scale if scale is not None else x, bias if bias is not None else x
    options = pdl_options(x)
    _dot[(*grid, splits)](
        x, weight, factor, given, out, partial, rows, width, outputs, span,
        OUT=tile.outputs, ROWS=columns, BLOCK=tile.block, EVEN=width % tile.block == 0, SPLITS=splits,
        GATED=False, SCALED=scale is not None, BIAS=bias is not None,
        ASM=x.is_cuda and x.dtype == torch.bfloat16 and weight.dtype != x.dtype,
        num_warps=tile.warps, num_stages=tile.stages, **options,
    )  # fmt: skip
    if splits > 1:
        _add_splits[(rows, triton.cdiv(outputs, 1024))](
            partial, factor, given, out, rows, outputs,
            SPLITS=splits, BLOCK=1024, SCALED=scale is not None, BIAS=bias is not None, num_warps=4, **options,
        )  # fmt: skip
    return out


def dot_gated(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> torch.Tensor:
    """`x [rows, in]`, `weight [2·inner, in]` (gate rows, then up rows), contiguous, in x's dtype → silu(gate)·up
    `[rows, inner]`. Half of the tile's outputs are gates; it has one split."""
    rows, width = x.shape
    outputs = weight.shape[0]
    columns, grid = _grid(rows, outputs, tile)
    out = torch.empty((rows, outputs // 2), dtype=x.dtype, device=x.device)
    _dot[(*grid, 1)](
        x, weight, x, x, out, out, rows, width, outputs, width,
        OUT=tile.outputs, ROWS=columns, BLOCK=tile.block, EVEN=width % tile.block == 0, SPLITS=1,
        GATED=True, SCALED=False, BIAS=False, ASM=False, num_warps=tile.warps, num_stages=tile.stages,
        **pdl_options(x),
    )  # fmt: skip
    return out


def _grid(rows: int, outputs: int, tile: Tile) -> tuple[int, tuple[int, int]]:
    """Rows a program, and how many programs for all rows and for all outputs."""
    columns = min(128, max(16, triton.next_power_of_2(rows)))
    return columns, (triton.cdiv(rows, columns), triton.cdiv(outputs, tile.outputs))
