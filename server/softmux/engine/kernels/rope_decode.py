"""One launch for a decoding layer's attention: RoPE, KV write, split-KV attention and the merge of its parts.

What the four steps do one after the other costs more in waiting than in work when rows are few, so one program does
them for a KV head of a row (and a share of its keys): it rotates the queries, keeps the newest key and value in
registers, and whichever program of a head ends last merges the parts. Keys that lie in the pool already may be loaded
before the kernel ahead has ended (programmatic dependent launch): nothing in this step writes them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.attention import _scores
from softmux.engine.kernels.launch import follows, pdl_options


@triton.jit
def _turned(source, partner, mask, weight_ptr, d, other, cos, sin, eps, D: tl.constexpr, NORM: tl.constexpr):
    """The heads at `source`, normed first if asked, and rotated: `x·cos + partner·sin`, `sin` signed by the half."""
    x = tl.load(source, mask=mask, other=0.0)
    y = tl.load(partner, mask=mask, other=0.0)
    a, b = x.to(tl.float32), y.to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(a * a, 1) / D + eps)[:, None]
        a = (a * scale).to(x.dtype) * tl.load(weight_ptr + d, mask=d < D, other=0.0)[None, :]
        b = (b * scale).to(x.dtype) * tl.load(weight_ptr + other, mask=d < D, other=0.0)[None, :]
        a, b = a.to(tl.float32), b.to(tl.float32)
    return (a * cos[None, :] + b * sin[None, :]).to(x.dtype)


@triton.jit(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr", "slots_ptr"])
def _rope_decode(
    qkv_ptr, keys_ptr, values_ptr, table_ptr, rows_ptr, positions_ptr, slots_ptr, cos_ptr, sin_ptr, q_norm_ptr,
    k_norm_ptr, out_ptr, partial_ptr, lse_ptr, arrived_ptr, eps, scale, window, kv_heads, table_stride, splits,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
    SPLITS: tl.constexpr, WINDOW: tl.constexpr, NORM: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    heads = kv_heads * GROUP
    row = tl.load(rows_ptr + at).to(tl.int64)
    position = tl.load(positions_ptr + at).to(tl.int32)
    first = 0
    if WINDOW:
        first = tl.maximum(0, position + 1 - window)
    span = tl.cdiv(tl.cdiv(position - first, splits), BLOCK) * BLOCK
    begin = first + split * span
    end = tl.minimum(begin + span, position)

    g = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, D_PAD)
    n = tl.arange(0, BLOCK)
    inside = d < D
    live = begin + n < end
    slot = tl.load(table_ptr + row * table_stride + begin + n, mask=live, other=0).to(tl.int64)
    place = (slot * kv_heads + kv_head)[:, None] * D + d[None, :]
    k = tl.load(keys_ptr + place, mask=live[:, None] & inside[None, :], other=0.0)
    v = tl.load(values_ptr + place, mask=live[:, None] & inside[None, :], other=0.0)
    low = d < D // 2
    half = tl.where(low, d, d - D // 2)
    other = tl.where(low, d + D // 2, d - D // 2)
    angle = position.to(tl.int64) * (D // 2) + half
    cos = tl.load(cos_ptr + angle, mask=inside, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=inside, other=0.0)
    sin = tl.where(low, -sin, sin)
    follows(PDL)  # the older keys and values are on their way by now

    source = qkv_ptr + at * (heads + 2 * kv_heads) * D
    q_mask = (g < GROUP)[:, None] & inside[None, :]
    q_head = source + ((kv_head * GROUP + g) * D)[:, None]
    q = _turned(q_head + d[None, :], q_head + other[None, :], q_mask, q_norm_ptr, d, other, cos, sin, eps, D, NORM)
    m = tl.full([GROUP_PAD], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    if split == 0:  # the newest token: from registers, and into the pool
        one = tl.arange(0, 1)[:, None] * D
        k_head = source + (heads + kv_head) * D + one
        new = _turned(
            k_head + d[None, :], k_head + other[None, :], inside[None, :] & (one == 0), k_norm_ptr, d, other, cos, sin,
            eps, D, NORM,
        )  # fmt: skip
        new_v = tl.load(source + (heads + kv_heads + kv_head) * D + d, mask=inside, other=0.0)
        target = (tl.load(slots_ptr + at).to(tl.int64) * kv_heads + kv_head) * D
        new = new.to(keys_ptr.dtype.element_ty)  # attended to as it will be read from now on
        new_v = new_v.to(keys_ptr.dtype.element_ty)
        tl.store(keys_ptr + target + one + d[None, :], new, mask=inside[None, :])
        tl.store(values_ptr + target + d, new_v, mask=inside)
        m = tl.sum(q.to(tl.float32) * new.to(tl.float32), 1) * scale * 1.4426950408889634
        total += 1.0
        acc += new_v.to(tl.float32)[None, :]
    for start in range(begin, end, BLOCK):
        if start > begin:
            live = start + n < end
            slot = tl.load(table_ptr + row * table_stride + start + n, mask=live, other=0).to(tl.int64)
            place = (slot * kv_heads + kv_head)[:, None] * D + d[None, :]
            k = tl.load(keys_ptr + place, mask=live[:, None] & inside[None, :], other=0.0)
            v = tl.load(values_ptr + place, mask=live[:, None] & inside[None, :], other=0.0)
        s = _scores(q, tl.trans(k.to(q.dtype)), scale, 1.0, False)
        s = tl.where(live[None, :], s, -float("inf"))
        higher = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(m - higher)
        acc = acc * fade[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        total = total * fade + tl.sum(p, 1)
        m = higher
    head = at * heads + kv_head * GROUP + g
    kind = out_ptr.dtype.element_ty
    if SPLITS == 1:
        tl.store(out_ptr + head[:, None] * D + d[None, :], (acc / total[:, None]).to(kind), mask=q_mask)
    else:
        safe = tl.where(total > 0, total, 1.0)
        tl.store(partial_ptr + (head * splits + split)[:, None] * D + d[None, :], acc / safe[:, None], mask=q_mask)
        lse = tl.where(total > 0, m + tl.log2(safe), -float("inf"))
        tl.store(lse_ptr + head * splits + split, lse, mask=g < GROUP)
        tl.debug_barrier()  # every thread's part is written before this program counts as arrived
        arrived = arrived_ptr + at * kv_heads + kv_head
        if tl.atomic_add(arrived, 1, sem="acq_rel") == splits - 1:
            tl.store(arrived, 0)  # for the next layer
            part = tl.arange(0, SPLITS)
            part_mask = (part < splits)[:, None] & inside[None, :]
            for h in tl.static_range(GROUP):
                merging = at * heads + kv_head * GROUP + h
                weight = tl.load(
                    lse_ptr + merging * splits + part, mask=part < splits, other=-float("inf"), cache_modifier=".cg"
                )
                weight = tl.exp2(weight - tl.max(weight, 0))
                parts = tl.load(
                    partial_ptr + (merging * splits + part)[:, None] * D + d[None, :], mask=part_mask, other=0.0,
                    cache_modifier=".cg",
                )  # fmt: skip
                merged = tl.sum(parts * weight[:, None], 0) / tl.sum(weight, 0)
                tl.store(out_ptr + merging * D + d, merged.to(kind), mask=inside)


def rope_decode(
    qkv: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    rotation: tuple[torch.Tensor, torch.Tensor],
    table: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    norms: tuple[torch.Tensor, torch.Tensor] | None,
    eps: float,
    arrived: torch.Tensor,
    *,
    heads: int,
    scaling: float,
    window: int | None,
    splits: int,
) -> torch.Tensor:
    """One new token a row: `qkv` `[rows, (heads + 2·kv_heads)·head_dim]` → attended `[rows, heads, head_dim]`.

    `keys`, `values`, `table`, `rows`, `positions` as for `attention.decode`, `rotation`, `slots` and `norms` as for
    `rope.rope_write`; keys and values are written at `slots`, which no two rows that matter share. `arrived` is int32,
    at least `rows·kv_heads` zeros, and is left so.
    """
    kv_heads, width = keys.shape[1:]
    count = qkv.shape[0]
    out = torch.empty((count, heads, width), dtype=qkv.dtype, device=qkv.device)
    q_norm, k_norm = norms if norms is not None else (qkv, qkv)
    wide = max(16, triton.next_power_of_2(width))
    partial = lse = out
    if splits > 1:
        partial = torch.empty((count, heads, splits, width), dtype=torch.float32, device=qkv.device)
        lse = torch.empty((count, heads, splits), dtype=torch.float32, device=qkv.device)
    group = heads // kv_heads
    _rope_decode[(count, kv_heads, splits)](
        qkv, keys, values, table, rows, positions, slots, *rotation, q_norm, k_norm, out, partial, lse, arrived,
        eps, scaling, window or 0, kv_heads, table.stride(0), splits,
        GROUP=group, GROUP_PAD=max(16, triton.next_power_of_2(group)), D=width, D_PAD=wide,
        BLOCK=32 if splits > 8 or wide > 64 or qkv.dtype == torch.float32 else 64,
        SPLITS=triton.next_power_of_2(splits), WINDOW=window is not None, NORM=norms is not None,
        num_warps=2 if wide <= 128 else 4, num_stages=3, **pdl_options(qkv),
    )  # fmt: skip
    return out
