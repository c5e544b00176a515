"""The small operations of a decoder layer, each one launch: norm with residual, RoPE with KV write, SiLU·up."""

from __future__ import annotations

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


@triton.jit
def _rope_write(
    qkv_ptr, q_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, eps,
    heads, kv_heads, stride, D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    d = tl.arange(0, HALF)
    live = d < D // 2
    source = qkv_ptr + token * stride + head * D
    low = tl.load(source + d, mask=live, other=0.0)
    high = tl.load(source + D // 2 + d, mask=live, other=0.0)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    if head >= heads + kv_heads:
        place = values_ptr + (slot * kv_heads + head - heads - kv_heads) * D
        tl.store(place + d, low, mask=live)
        tl.store(place + D // 2 + d, high, mask=live)
    else:
        a, b = low.to(tl.float32), high.to(tl.float32)
        if NORM:
            weight_ptr = q_norm_ptr if head < heads else k_norm_ptr
            scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / D + eps)
            a = (a * scale).to(low.dtype) * tl.load(weight_ptr + d, mask=live, other=0.0)
            b = (b * scale).to(low.dtype) * tl.load(weight_ptr + D // 2 + d, mask=live, other=0.0)
            a, b = a.to(tl.float32), b.to(tl.float32)
        position = tl.load(positions_ptr + token).to(tl.int64)
        cos = tl.load(cos_ptr + position * (D // 2) + d, mask=live, other=0.0)
        sin = tl.load(sin_ptr + position * (D // 2) + d, mask=live, other=0.0)
        place = q_ptr + (token * heads + head) * D
        if head >= heads:
            place = keys_ptr + (slot * kv_heads + head - heads) * D
        tl.store(place + d, (a * cos - b * sin).to(low.dtype), mask=live)
        tl.store(place + D // 2 + d, (b * cos + a * sin).to(low.dtype), mask=live)


def rope_write(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    positions: torch.Tensor,
    slots: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    *,
    heads: int,
) -> torch.Tensor:
    """Splits `qkv` `[tokens, (heads + 2·kv_heads)·head_dim]`; rotates queries and keys (RoFormer, arXiv 2104.09864,
    halves paired as in Llama) by `rotation`, float32 cos and sin `[context, head_dim/2]`; writes keys and values into
    the pool at `slots`; returns the queries `[tokens, heads, head_dim]`. `norms`: RMSNorm weights for queries and
    keys before it (Qwen3)."""
    kv_heads, width = keys.shape[1:]
    tokens = qkv.shape[0]
    query = torch.empty((tokens, heads, width), dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm = norms if norms is not None else (qkv, qkv)
    _rope_write[(tokens, heads + 2 * kv_heads)](
        qkv, query, keys, values, *rotation, positions, slots, q_norm, k_norm, eps, heads, kv_heads, qkv.stride(0),
        D=width, HALF=triton.next_power_of_2(width // 2), NORM=norms is not None, num_warps=1, **pdl_options(qkv),
    )  # fmt: skip
    return query


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
