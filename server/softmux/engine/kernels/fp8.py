"""Products with weights in fp8 (e4m3, a scale for each output): `y = x·(data·scale)ᵀ`, the weight never held unpacked.

Three ways, by rows. One or two: a walk through the weights with float32 sums (as in `linear.py`). Up to some hundreds:
`tl.dot` on tiles that are turned into x's dtype in registers, which is exact, with the scale put on the float32 sums;
the weight is the product's left side, so that it need not go back to shared memory, and few rows cost few columns.
Beyond: pieces of the weight are unpacked into a scratch buffer and multiplied by the library, which costs little where
arithmetic rules.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from softmux.engine.fp8 import Fp8Weight
from softmux.engine.kernels.dot import Tile
from softmux.engine.kernels.dot import dot as tiled
from softmux.engine.kernels.launch import follows, pdl_options
from softmux.engine.kernels.linear import STREAM_ROWS

DOT_ROWS = 256
"""Beyond so many rows `product` takes the library."""
SCRATCH = 1 << 26
"""Numbers of the scratch buffer: 128 MiB in half precision, and large enough that a piece fills the card."""


@triton.jit
def _four_floats(word, ASM: tl.constexpr):
    """The four numbers of a 32-bit word, lowest byte first. `ASM` False: by shifts, for the interpreter; the bits are
    put where float32 has them, which gives the number times 2⁻¹²⁰."""
    if ASM:
        return tl.inline_asm_elementwise(
            """{
            .reg .b16 low, high, h<4>;
            .reg .b32 first, second;
            mov.b32 {low, high}, $4;
            cvt.rn.f16x2.e4m3x2 first, low;
            cvt.rn.f16x2.e4m3x2 second, high;
            mov.b32 {h0, h1}, first;
            mov.b32 {h2, h3}, second;
            cvt.f32.f16 $0, h0;
            cvt.f32.f16 $1, h1;
            cvt.f32.f16 $2, h2;
            cvt.f32.f16 $3, h3;
            }""",
            constraints="=r,=r,=r,=r,r",
            args=[word],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    else:
        back: tl.constexpr = 1.329227995784916e36  # 2¹²⁰
        a = (((word & 0x80) << 24) | ((word & 0x7F) << 20)).to(tl.float32, bitcast=True) * back
        b = (((word & 0x8000) << 16) | ((word & 0x7F00) << 12)).to(tl.float32, bitcast=True) * back
        c = (((word & 0x800000) << 8) | ((word & 0x7F0000) << 4)).to(tl.float32, bitcast=True) * back
        d = ((word & -0x80000000) | ((word >> 4) & 0x7F00000)).to(tl.float32, bitcast=True) * back
        return a, b, c, d


@triton.jit
def _times(acc, w, x_ptr, at, mask, KIND: tl.constexpr):
    """`acc` plus four weights' float32 by four of x, which are read as one 64-bit word."""
    word = tl.load(x_ptr.to(tl.pointer_type(tl.int64)) + at, mask=mask, other=0)
    a, b, c, d = w
    acc += a * word.to(tl.int16).to(KIND, bitcast=True).to(tl.float32)[None, :]
    acc += b * (word >> 16).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)[None, :]
    acc += c * (word >> 32).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)[None, :]
    acc += d * (word >> 48).to(tl.int16).to(KIND, bitcast=True).to(tl.float32)[None, :]
    return acc


@triton.jit
def _stream(
    x_ptr, weight_ptr, scale_ptr, bias_ptr, out_ptr, words, outputs,
    ROWS: tl.constexpr, OUT: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, ASM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    o = tl.program_id(0) * OUT + tl.arange(0, OUT)
    k = tl.arange(0, BLOCK)
    live = o < outputs
    place = weight_ptr.to(tl.pointer_type(tl.int32)) + o.to(tl.int64)[:, None] * words + k[None, :]
    w = tl.load(place, mask=live[:, None] & (k < words)[None, :], other=0)
    scale = tl.load(scale_ptr + o, mask=live, other=0.0)
    follows(PDL)  # the first weights are on their way by now
    first = tl.zeros([OUT, BLOCK], tl.float32)
    second = tl.zeros([OUT, BLOCK], tl.float32)
    kind: tl.constexpr = out_ptr.dtype.element_ty
    for at in range(0, words, BLOCK):
        if at > 0:
            w = tl.load(place + at, mask=live[:, None] & (at + k < words)[None, :], other=0)
        four = _four_floats(w, ASM)
        inside = at + k < words
        first = _times(first, four, x_ptr, at + k, inside, kind)
        if ROWS > 1:
            second = _times(second, four, x_ptr, words + at + k, inside, kind)
    bias = tl.zeros([OUT], tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + o, mask=live, other=0.0).to(tl.float32)
    tl.store(out_ptr + o, (tl.sum(first, 1) * scale + bias).to(kind), mask=live)
    if ROWS > 1:
        tl.store(out_ptr + outputs + o, (tl.sum(second, 1) * scale + bias).to(kind), mask=live)


def streams(x: torch.Tensor) -> bool:
    """Whether `stream` can take x: one or two rows in half precision, of whole words."""
    return x.shape[0] <= STREAM_ROWS and x.dtype in (torch.bfloat16, torch.float16) and x.shape[1] % 4 == 0


def stream(
    x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None, *, outputs_each: int, warps: int = 8
) -> torch.Tensor:
    """`x [rows ≤ 2, in]` in half precision, `in` a multiple of 4 → `[rows, out]`; `outputs_each` outputs a program."""
    rows, width = x.shape
    outputs = weight.shape[0]
    out = torch.empty((rows, outputs), dtype=x.dtype, device=x.device)
    _stream[(triton.cdiv(outputs, outputs_each),)](
        x, weight.data, weight.scale, bias if bias is not None else x, out, width // 4, outputs,
        ROWS=rows, OUT=outputs_each, BLOCK=min(256, triton.next_power_of_2(width // 4)), BIAS=bias is not None,
        ASM=x.is_cuda, num_warps=warps, num_stages=3, **pdl_options(x),
    )  # fmt: skip
    return out


def dot(x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None, tile: Tile) -> torch.Tensor:
    """`x [rows, in]` → `[rows, out]`, any number of rows."""
    return tiled(x, weight.data, bias, tile, scale=weight.scale)


@triton.jit
def _unpack(data_ptr, scale_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = k < width
    w = tl.load(data_ptr + row * width + k, mask=live, other=0.0).to(tl.float32) * tl.load(scale_ptr + row)
    tl.store(out_ptr + row * width + k, w.to(out_ptr.dtype.element_ty), mask=live)


def unpack(weight: Fp8Weight, out: torch.Tensor) -> None:
    """Writes the weight into `out [out, in]`, contiguous, in out's dtype."""
    outputs, width = weight.shape
    _unpack[(outputs, triton.cdiv(width, 4096))](weight.data, weight.scale, out, width, BLOCK=4096, num_warps=4)


def through_scratch(
    x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None, scratch: torch.Tensor
) -> torch.Tensor:
    """The library's product, on as many outputs at a time as fit unpacked into `scratch` (flat, in x's dtype)."""
    outputs, width = weight.shape
    each = max(1, scratch.numel() // width)
    if each >= outputs:
        whole = scratch[: outputs * width].view(outputs, width)
        unpack(weight, whole)
        return F.linear(x, whole, bias)
    out = torch.empty((x.shape[0], outputs), dtype=x.dtype, device=x.device)
    for at in range(0, outputs, each):
        part = Fp8Weight(weight.data[at : at + each], weight.scale[at : at + each])
        room = scratch[: part.data.numel()].view(part.shape)
        unpack(part, room)
        torch.mm(x, room.t(), out=out[:, at : at + each])
    return out if bias is None else out.add_(bias)


def scratch_for(weight: Fp8Weight, x: torch.Tensor) -> torch.Tensor:
    """Room for `through_scratch`: at least one output's row, at most `SCRATCH` numbers beyond that."""
    outputs, width = weight.shape
    return torch.empty(max(width, min(SCRATCH, outputs * width)), dtype=x.dtype, device=x.device)


PLAIN = Tile(outputs=64, block=128, splits=1, warps=4, stages=4)
_SMALL = Tile(outputs=64, block=64, splits=1, warps=4, stages=3)
"""Where PLAIN's tiles of x would not fit the 99 KB of shared memory that every card has: float32, and above 64 rows."""


def product(x: torch.Tensor, weight: Fp8Weight, bias: torch.Tensor | None) -> torch.Tensor:
    """`x [rows, in]` → `[rows, out]`, by rows alone: for a module that runs as transformers wrote it. The fused step
    chooses by measurement (`softmux.engine.products`)."""
    if streams(x):
        return stream(x, weight, bias, outputs_each=8)
    if x.shape[0] <= DOT_ROWS:
        return dot(x, weight, bias, _SMALL if x.dtype == torch.float32 or x.shape[0] > 64 else PLAIN)
    return through_scratch(x, weight, bias, scratch_for(weight, x))
