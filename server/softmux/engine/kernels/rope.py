"""Rotary position embedding with the KV write: a token's queries in one program, its keys and values in another."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options


@triton.jit
def _rotated(source, mask, weight_ptr, cos, sin, d, eps, D: tl.constexpr, NORM: tl.constexpr):
    """Both halves of the heads at `source` `[heads, D/2]`, normed first if asked, turned by `cos` and `sin` `[D/2]`."""
    low = tl.load(source, mask=mask, other=0.0)
    high = tl.load(source + D // 2, mask=mask, other=0.0)
    a, b = low.to(tl.float32), high.to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(a * a, 1) + tl.sum(b * b, 1)) / D + eps)[:, None]
        live = d < D // 2
        a = (a * scale).to(low.dtype) * tl.load(weight_ptr + d, mask=live, other=0.0)[None, :]
        b = (b * scale).to(low.dtype) * tl.load(weight_ptr + D // 2 + d, mask=live, other=0.0)[None, :]
        a, b = a.to(tl.float32), b.to(tl.float32)
    return a * cos[None, :] - b * sin[None, :], b * cos[None, :] + a * sin[None, :]


@triton.jit
def _rope_write(
    qkv_ptr, q_ptr, keys_ptr, values_ptr, cos_ptr, sin_ptr, positions_ptr, slots_ptr, q_norm_ptr, k_norm_ptr, eps,
    stride, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, KV_HEADS: tl.constexpr, KV_PAD: tl.constexpr,
    D: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    token = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, HALF)
    live = d < D // 2
    position = tl.load(positions_ptr + token).to(tl.int64)
    cos = tl.load(cos_ptr + position * (D // 2) + d, mask=live, other=0.0)
    sin = tl.load(sin_ptr + position * (D // 2) + d, mask=live, other=0.0)
    if tl.program_id(1) == 0:
        q_head = tl.arange(0, HEADS_PAD)
        q_mask = (q_head < HEADS)[:, None] & live[None, :]
        q_at = q_head[:, None] * D + d[None, :]
        q_low, q_high = _rotated(qkv_ptr + token * stride + q_at, q_mask, q_norm_ptr, cos, sin, d, eps, D, NORM)
        target = q_ptr + token * HEADS * D + q_at
        tl.store(target, q_low.to(q_ptr.dtype.element_ty), mask=q_mask)
        tl.store(target + D // 2, q_high.to(q_ptr.dtype.element_ty), mask=q_mask)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        head = tl.arange(0, KV_PAD)
        mask = (head < KV_HEADS)[:, None] & live[None, :]
        at = head[:, None] * D + d[None, :]
        source = qkv_ptr + token * stride + HEADS * D + at
        k_low, k_high = _rotated(source, mask, k_norm_ptr, cos, sin, d, eps, D, NORM)
        k_target = keys_ptr + slot * KV_HEADS * D + at
        tl.store(k_target, k_low.to(keys_ptr.dtype.element_ty), mask=mask)
        tl.store(k_target + D // 2, k_high.to(keys_ptr.dtype.element_ty), mask=mask)
        v_low = tl.load(source + KV_HEADS * D, mask=mask, other=0.0)
        v_high = tl.load(source + KV_HEADS * D + D // 2, mask=mask, other=0.0)
        v_target = values_ptr + slot * KV_HEADS * D + at
        tl.store(v_target, v_low.to(values_ptr.dtype.element_ty), mask=mask)
        tl.store(v_target + D // 2, v_high.to(values_ptr.dtype.element_ty), mask=mask)


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
    _rope_write[(tokens, 2)](
        qkv, query, keys, values, *rotation, positions, slots, q_norm, k_norm, eps, qkv.stride(0),
        HEADS=heads, HEADS_PAD=triton.next_power_of_2(heads), KV_HEADS=kv_heads,
        KV_PAD=triton.next_power_of_2(kv_heads), D=width, HALF=triton.next_power_of_2(width // 2),
        NORM=norms is not None, num_warps=4, **pdl_options(qkv),
    )  # fmt: skip
    return query
