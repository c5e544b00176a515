"""The small operations of a decoder layer, each one launch: norm with residual, SiLU·up."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.ahead import SPARE, fetch_ahead, lines_ahead
from softmux.engine.kernels.launch import follows, pdl_options


@triton.jit(do_not_specialize=["tokens"])
def _add_norm(
    x_ptr, residual_ptr, weight_ptr, out_ptr, ahead_ptr, tokens, lines, width, eps,
    ADD: tl.constexpr, BLOCK: tl.constexpr, SPARE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    if SPARE:  # noqa: SIM102 (one is known to the compiler, the other is not)
        if row >= tokens:
            fetch_ahead(ahead_ptr, lines, tl.program_id(0) - tokens, SPARE, 512, PDL)
            return
    follows(PDL)
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


def add_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float, *, add: bool,
    ahead: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """RMSNorm (Zhang and Sennrich, 2019) of `residual + x` (or of `x`, `add` False), `[tokens, hidden]`; the sum is
    left in `residual`. Rounded as transformers rounds: the sum, then the normed value, in the model's dtype. `ahead`:
    the weight that is read next (see `kernels.ahead`)."""
    out = torch.empty_like(x)
    tokens, width = x.shape
    block = triton.next_power_of_2(width)
    lines = lines_ahead(ahead, tokens)
    spare = SPARE if lines else 0
    _add_norm[(tokens + spare,)](
        x, residual, weight, out, x if ahead is None else ahead, tokens, lines, width, eps,
        ADD=add, BLOCK=block, SPARE=spare, num_warps=min(16, max(1, block // 512)), **pdl_options(x),
    )  # fmt: skip
    return out


class RMSNorm(NamedTuple):
    """A layer's norm, by its weight and epsilon."""

    gain: torch.Tensor
    eps: float

    def __call__(
        self, x: torch.Tensor, residual: torch.Tensor | None, ahead: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `residual + x` (of `x`, without one), and that sum: in the residual's own memory."""
        summed = torch.empty_like(x) if residual is None else residual
        return add_norm(x, summed, self.gain, self.eps, add=residual is not None, ahead=ahead), summed


@triton.jit(do_not_specialize=["tokens"])
def _silu_mul(
    x_ptr, out_ptr, ahead_ptr, tokens, lines, width, BLOCK: tl.constexpr, SPARE: tl.constexpr, PDL: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    if SPARE:  # noqa: SIM102 (one is known to the compiler, the other is not)
        if row >= tokens:
            part = (tl.program_id(0) - tokens) * tl.num_programs(1) + tl.program_id(1)
            fetch_ahead(ahead_ptr, lines, part, SPARE * tl.num_programs(1), 512, PDL)
            return
    follows(PDL)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = at < width
    gate = tl.load(x_ptr + row * 2 * width + at, mask=live, other=0.0)
    up = tl.load(x_ptr + row * 2 * width + width + at, mask=live, other=0.0)
    wide = gate.to(tl.float32)
    act = (wide / (1.0 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out_ptr + row * width + at, act * up, mask=live)


def silu_mul(gate_up: torch.Tensor, ahead: torch.Tensor | None = None) -> torch.Tensor:
    """`[tokens, 2·inner]` → silu(first half)·second half, `[tokens, inner]`. `ahead` as for `add_norm`."""
    tokens, twice = gate_up.shape
    out = torch.empty((tokens, twice // 2), dtype=gate_up.dtype, device=gate_up.device)
    chunks = triton.cdiv(twice // 2, 1024)
    lines = lines_ahead(ahead, tokens)
    spare = triton.cdiv(SPARE, chunks) if lines else 0
    _silu_mul[(tokens + spare, chunks)](
        gate_up, out, gate_up if ahead is None else ahead, tokens, lines, twice // 2,
        BLOCK=1024, SPARE=spare, num_warps=4, **pdl_options(gate_up),
    )  # fmt: skip
    return out
