"""silu(gate)·up of many rows in one launch: a product whose tiles the bulk copy engine brings (TMA, from Hopper on).

One layer's gate and up take half of a prefill's operations, and SiLU·up behind them reads and writes as many bytes as a
tenth of their time is worth. Here a program has the same outputs of both in its registers. Blocks of rows take turns
in groups, so that a group's rows and the weights of the moment stay in the L2 cache.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from softmux.engine.kernels.dot import Tile
from softmux.engine.kernels.launch import capable, follows, pdl_options
from softmux.engine.kernels.layer import silu_times

_ROWS = 128
_GROUP = 16
"""Blocks of rows that take turns: 2,048 rows of 4,096 numbers are 16 MiB."""


@triton.jit(do_not_specialize=["rows"])  # no step waits for a variant to be compiled
def _gated(
    x_rows, weights, out_ptr, rows, width, inner,
    ROWS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    blocks = tl.cdiv(rows, ROWS)
    turn = GROUP * tl.cdiv(inner, OUT)
    first = tl.program_id(0) // turn * GROUP
    within = tl.program_id(0) % turn
    size = tl.minimum(blocks - first, GROUP)
    row = (first + within % size) * ROWS
    output = within // size * OUT
    gate = tl.zeros([ROWS, OUT], tl.float32)
    up = tl.zeros([ROWS, OUT], tl.float32)
    for at in range(0, width, BLOCK):  # beyond the last are zeros, or up's first rows: none of it is stored
        x = x_rows.load([row, at])
        gate = tl.dot(x, weights.load([output, at]).T, gate, input_precision="ieee")
        up = tl.dot(x, weights.load([inner + output, at]).T, up, input_precision="ieee")
    r = row + tl.arange(0, ROWS)
    o = output + tl.arange(0, OUT)
    place = out_ptr + r.to(tl.int64)[:, None] * inner + o[None, :]
    live = (r < rows)[:, None] & (o < inner)[None, :]
    tl.store(place, silu_times(gate, up, out_ptr.dtype.element_ty), mask=live)


def fits(weight: torch.Tensor) -> bool:
    """Whether the card has the copy engine, and it can address the weight's rows: 16 bytes apart, or a multiple."""
    return weight.is_cuda and capable(weight.device.index or 0) and weight.shape[1] * weight.element_size() % 16 == 0


def gated(x: torch.Tensor, weight: torch.Tensor, tile: Tile) -> torch.Tensor:
    """`x [rows, in]`, `weight [2·inner, in]` (gate rows, then up rows), both contiguous, of one dtype → silu(gate)·up
    `[rows, inner]`. The tile's outputs are as many gates and as many ups; it has one split."""
    rows, width = x.shape
    inner = weight.shape[0] // 2
    out = torch.empty((rows, inner), dtype=x.dtype, device=x.device)
    _gated[(triton.cdiv(rows, _ROWS) * triton.cdiv(inner, tile.outputs),)](
        TensorDescriptor.from_tensor(x, [_ROWS, tile.block]),
        TensorDescriptor.from_tensor(weight, [tile.outputs, tile.block]),
        out, rows, width, inner,
        ROWS=_ROWS, OUT=tile.outputs, BLOCK=tile.block, GROUP=_GROUP,
        num_warps=tile.warps, num_stages=tile.stages, **pdl_options(x),
    )  # fmt: skip
    return out
