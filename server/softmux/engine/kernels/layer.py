"""The small operations of a decoder layer, each one launch: norm with residual, SiLU·up."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options


@triton.jit
def _add_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, width, eps, ADD: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):
    follows(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    live = at < width
    x = tl.load(x_ptr + row * width + at, mask=live, other=0.0)
    if ADD:
        x = (tl.load(residual_ptr + row * width + at, mask=live, other=0.0) + x).to(x.dtype)
    tl.store(residual_ptr + row * width + at, x, mask=live)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / width + eps)
    weight = tl.load(weight_ptr + at, mask=live, other=0.0)
    tl.store(out_ptr + row * width + at, (wide * scale).to(x.dtype) * weight, mask=live)


def add_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, add: bool) -> torch.Tensor:
    """RMSNorm (Zhang and Sennrich, 2019) of `residual + x` (or of `x`, `add` False), `[tokens, hidden]`; the sum is
    left in `residual`. Rounded as transformers rounds: the sum, then the normed value, in the model's dtype."""
    out = torch.empty_like(x)
    tokens, width = x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(tokens,)](
        x, residual, weight, out, width, eps, ADD=add, BLOCK=block, num_warps=min(16, max(1, block // 512)),
        **pdl_options(x),
    )  # fmt: skip
    return out


class RMSNorm(NamedTuple):
    """A layer's norm, by its weight and epsilon."""

    gain: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor, residual: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `residual + x` (of `x`, without one), and that sum: in the residual's own memory."""
        summed = torch.empty_like(x) if residual is None else residual
        return add_norm(x, summed, self.gain, self.eps, add=residual is not None), summed


@triton.jit
def silu_times(gate, up, KIND: tl.constexpr):
    """silu(gate)·up of a product's float32 sums, rounded to `KIND` where separate launches would round."""
    gate = gate.to(KIND).to(tl.float32)
    act = (gate / (1.0 + tl.exp(-gate))).to(KIND).to(tl.float32)
    return (act * up.to(KIND).to(tl.float32)).to(KIND)


@triton.jit
def _silu_mul(x_ptr, out_ptr, width, BLOCK: tl.constexpr, PDL: tl.constexpr):
    follows(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < width
    gate = tl.load(x_ptr + row * 2 * width + at, mask=live, other=0.0)
    up = tl.load(x_ptr + row * 2 * width + width + at, mask=live, other=0.0)
    wide = gate.to(tl.float32)
    act = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out_ptr + row * width + at, act * up, mask=live)


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """`[tokens, 2·inner]` → silu(first half)·second half, `[tokens, inner]`."""
    tokens, twice = gate_up.shape
    out = torch.empty((tokens, twice // 2), dtype=gate_up.dtype, device=gate_up.device)
    _silu_mul[(tokens, triton.cdiv(twice // 2, 1024))](
        gate_up, out, twice // 2, BLOCK=1024, num_warps=4, **pdl_options(gate_up)
    )
    return out
