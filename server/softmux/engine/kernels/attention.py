"""Attention over the paged KV pool (a page is one token): split-KV decode, and extend for chunks.

Both walk a row's slots through the slot table, so cached and new tokens are read alike; the layer has written its new
keys and values before. Scores and sums are in float32; `tl.dot` on float32 inputs is exact (no TF32).

Decode after Flash-Decoding (Dao et al., 2023): the keys of a row are split over programs, partial softmaxes are merged
by their log-sum-exp. All query heads of a KV head share one program, so each key is read once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options

_LOG2E = 1.4426950408889634


@triton.jit
def _scores(q, k, scale, softcap, SOFTCAP: tl.constexpr):
    """q·k in the exponent's base two, soft-capped if asked: c·tanh(s/c)."""
    s = tl.dot(q, k, input_precision="ieee")
    if SOFTCAP:
        t = s * scale / softcap
        e = tl.exp(-2.0 * tl.abs(t))
        return tl.where(t < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e) * softcap * 1.4426950408889634
    return s * (scale * 1.4426950408889634)


@triton.jit(do_not_specialize_on_alignment=["rows_ptr", "positions_ptr", "picked_ptr"])  # parts of one small tensor
def _decode(
    q_ptr, keys_ptr, values_ptr, table_ptr, rows_ptr, positions_ptr, picked_ptr, out_ptr, partial_ptr, lse_ptr,
    scale, softcap, window, heads, kv_heads, table_stride, splits,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, SPLIT: tl.constexpr, PICKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    at = tl.program_id(1)
    token = at
    if PICKED:
        token = tl.load(picked_ptr + at)
    kv_head = tl.program_id(0)
    split = tl.program_id(2)
    row = tl.load(rows_ptr + at).to(tl.int64)
    length = tl.load(positions_ptr + at).to(tl.int32) + 1
    first = 0
    if WINDOW:
        first = tl.maximum(0, length - window)
    span = tl.cdiv(tl.cdiv(length - first, splits), BLOCK) * BLOCK
    begin = first + split * span
    end = tl.minimum(begin + span, length)

    g = tl.arange(0, GROUP_PAD)
    d = tl.arange(0, D_PAD)
    n = tl.arange(0, BLOCK)
    head = kv_head * GROUP + g
    q_mask = (g < GROUP)[:, None] & (d < D)[None, :] & (token >= 0)
    q_place = (token * heads + head)[:, None] * D + d[None, :]
    q = tl.load(q_ptr + q_place, mask=q_mask, other=0.0)
    m = tl.full([GROUP_PAD], -float("inf"), tl.float32)
    total = tl.zeros([GROUP_PAD], tl.float32)
    acc = tl.zeros([GROUP_PAD, D_PAD], tl.float32)
    for start in range(begin, end, BLOCK):
        live = start + n < end
        slot = tl.load(table_ptr + row * table_stride + start + n, mask=live, other=0).to(tl.int64)
        place = (slot * kv_heads + kv_head)[:, None] * D + d[None, :]
        kv_mask = live[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + place, mask=kv_mask, other=0.0)
        s = _scores(q, tl.trans(k.to(q.dtype)), scale, softcap, SOFTCAP)
        s = tl.where(live[None, :], s, -float("inf"))
        higher = tl.maximum(m, tl.max(s, 1))
        p = tl.exp2(s - higher[:, None])
        fade = tl.exp2(m - higher)
        v = tl.load(values_ptr + place, mask=kv_mask, other=0.0)
        acc = acc * fade[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision="ieee")
        total = total * fade + tl.sum(p, 1)
        m = higher
    if SPLIT:
        place = ((at * heads + head) * splits + split)[:, None] * D + d[None, :]
        safe = tl.where(total > 0, total, 1.0)
        tl.store(partial_ptr + place, acc / safe[:, None], mask=q_mask)
        lse = tl.where(total > 0, m + tl.log2(safe), -float("inf"))
        tl.store(lse_ptr + (at * heads + head) * splits + split, lse, mask=g < GROUP)
    else:
        out = (acc / total[:, None]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + q_place, out, mask=q_mask)


@triton.jit(do_not_specialize_on_alignment=["picked_ptr"])
def _merge(
    partial_ptr, lse_ptr, picked_ptr, out_ptr, splits, heads,
    D: tl.constexpr, D_PAD: tl.constexpr, SPLITS: tl.constexpr, PICKED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    at = tl.program_id(0)
    target, told = at, True
    if PICKED:
        token = tl.load(picked_ptr + at // heads)
        target, told = token * heads + at % heads, token >= 0
    s = tl.arange(0, SPLITS)
    d = tl.arange(0, D_PAD)
    lse = tl.load(lse_ptr + at * splits + s, mask=s < splits, other=-float("inf"))
    weight = tl.exp2(lse - tl.max(lse, 0))
    mask = (s < splits)[:, None] & (d < D)[None, :]
    part = tl.load(partial_ptr + (at * splits + s)[:, None] * D + d[None, :], mask=mask, other=0.0)
    out = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out_ptr + target * D + d, out.to(out_ptr.dtype.element_ty), mask=(d < D) & told)


@triton.jit
def _extend_block(
    q, m, total, acc, at, last, position, window, scale, softcap, keys_ptr, values_ptr, slots_ptr, kv_heads, kv_head,
    D: tl.constexpr, D_PAD: tl.constexpr, BLOCK: tl.constexpr, SOFTCAP: tl.constexpr, WINDOW: tl.constexpr,
    MASKED: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """One block of keys from `at` on, for all queries of the program. Not `MASKED`: every query sees every key."""
    d = tl.arange(0, D_PAD)
    key = at + tl.arange(0, BLOCK)
    live = key < last
    if MASKED:
        slot = tl.load(slots_ptr + key, mask=live, other=0).to(tl.int64)
    else:
        slot = tl.load(slots_ptr + key).to(tl.int64)
    place = (slot * kv_heads + kv_head)[:, None] * D + d[None, :]
    if MASKED or D != D_PAD:
        kv_mask = live[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + place, mask=kv_mask, other=0.0)
        v = tl.load(values_ptr + place, mask=kv_mask, other=0.0)
    else:
        k = tl.load(keys_ptr + place)
        v = tl.load(values_ptr + place)
    s = _scores(q, tl.trans(k.to(q.dtype)), scale, softcap, SOFTCAP)
    if MASKED:
        seen = live[None, :]
        if CAUSAL:
            seen &= key[None, :] <= position[:, None]
        if WINDOW:
            seen &= key[None, :] > position[:, None] - window
            if not CAUSAL:
                seen &= key[None, :] < position[:, None] + window
        s = tl.where(seen, s, -float("inf"))
    higher = tl.maximum(m, tl.max(s, 1))
    safe = higher
    if WINDOW:  # a query may have seen nothing yet
        safe = tl.where(higher == -float("inf"), 0.0, higher)
    p = tl.exp2(s - safe[:, None])
    fade = tl.exp2(m - safe)
    acc = acc * fade[:, None] + tl.dot(p.to(q.dtype), v.to(q.dtype), input_precision="ieee")
    return higher, total * fade + tl.sum(p, 1), acc


@triton.jit(
    do_not_specialize_on_alignment=[
        "block_row_ptr", "block_first_ptr", "rows_ptr", "offsets_ptr", "starts_ptr", "counts_ptr"
    ]
)  # parts of one small tensor: no step waits for a variant to be compiled  # fmt: skip
def _extend(
    q_ptr, keys_ptr, values_ptr, table_ptr, out_ptr, block_row_ptr, block_first_ptr,
    rows_ptr, offsets_ptr, starts_ptr, counts_ptr, scale, softcap, window, kv_heads, table_stride,
    q_stride, GROUP: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, QUERIES: tl.constexpr, BLOCK: tl.constexpr,
    SOFTCAP: tl.constexpr, WINDOW: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0)
    block = tl.program_id(1)
    i = tl.load(block_row_ptr + block)
    first = tl.load(block_first_ptr + block)
    row = tl.load(rows_ptr + i).to(tl.int64)
    offset = tl.load(offsets_ptr + i)
    start = tl.load(starts_ptr + i)
    count = tl.load(counts_ptr + i)
    kv_head = head // GROUP

    query = first + tl.arange(0, QUERIES)
    d = tl.arange(0, D_PAD)
    q_mask = (query < count)[:, None] & (d < D)[None, :]
    q_place = (offset + query).to(tl.int64)[:, None] * q_stride + head * D + d[None, :]
    q = tl.load(q_ptr + q_place, mask=q_mask, other=0.0)
    position = start + query
    last = tl.minimum(start + first + QUERIES, start + count)
    begin = 0
    DIAGONAL_STAGES: tl.constexpr = None if WINDOW else 1
    all_seen = (start + first + 1) // BLOCK * BLOCK  # keys before it are seen by every query of the block
    if WINDOW:
        begin = tl.maximum(0, start + first - window + 1) // BLOCK * BLOCK
        all_seen = begin
    if not CAUSAL:  # whole rows
        if WINDOW:
            last = tl.minimum(start + count, last + window - 1)
        else:
            last = start + count
            all_seen = last // BLOCK * BLOCK
    slots_ptr = table_ptr + row * table_stride
    m = tl.full([QUERIES], -float("inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    acc = tl.zeros([QUERIES, D_PAD], tl.float32)
    for at in range(begin, all_seen, BLOCK):
        m, total, acc = _extend_block(
            q, m, total, acc, at, last, position, window, scale, softcap, keys_ptr, values_ptr, slots_ptr, kv_heads,
            kv_head, D, D_PAD, BLOCK, SOFTCAP, WINDOW, False, CAUSAL,
        )  # fmt: skip
    # where loads are pipelined in both loops, the first one's matrix instructions wait for one another
    for at in tl.range(all_seen, last, BLOCK, num_stages=DIAGONAL_STAGES):
        m, total, acc = _extend_block(
            q, m, total, acc, at, last, position, window, scale, softcap, keys_ptr, values_ptr, slots_ptr, kv_heads,
            kv_head, D, D_PAD, BLOCK, SOFTCAP, WINDOW, True, CAUSAL,
        )  # fmt: skip
    out = (acc / tl.where(total > 0, total, 1.0)[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + q_place, out, mask=q_mask)


MOST_SPLITS = 8
_WAVES = 4
_FEW_PROGRAMS = 1024


def splits_for(rows: int, kv_heads: int, processors: int) -> int:
    """Programs a row's keys are split over: enough to give each processor about four, 8 at most (of 512 keys: with 8 a
    step of one row takes 0.89 ms on an H200, with 16 0.95, with 32 0.98; 4 are best for 16 rows, none for 64)."""
    return max(1, min(MOST_SPLITS, _WAVES * processors // max(1, rows * kv_heads)))


def counters(processors: int) -> int:
    """Pairs of row and KV head that there may be while keys are split at all."""
    return _WAVES * processors // 2


def _decode_launch(programs: int, wide: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Keys a turn, warps and stages. Slots are looked up a stage ahead of what they name, so three stages keep one turn
    of keys on its way, five keep two and seven three. Narrow heads need that where few programs share the card; wide
    ones keep memory busy with one (on an H200, TB/s at 64 · 256 rows of 512: 3.6 · 4.1 so, 3.0 · 3.9 with five)."""
    if dtype == torch.float32 or wide > 128:
        return 32, 4, 3
    if wide > 64:
        return 64, 4, 3
    return (64, 2, 7) if programs <= _FEW_PROGRAMS else (64, 2, 5)


def decode(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
    picked: torch.Tensor | None = None,
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    splits: int,
) -> None:
    """One new token a row. `query`, `out` `[rows, heads, head_dim]`; `keys`, `values` `[slots, kv_heads, head_dim]`;
    `table` `[table_rows, context]` int32; `rows`, `positions` `[rows]` integers, on the device. With `picked` `[rows]`
    int32, `query` and `out` are those of a whole step `[tokens, …]`, and row i's token is `picked[i]`; −1 stands for no
    row, and its position is −1, too."""
    count, (heads, width) = len(rows), query.shape[1:]
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    wide = max(16, triton.next_power_of_2(width))
    block, warps, stages = _decode_launch(count * kv_heads, wide, query.dtype)
    partial = lse = out
    if splits > 1:
        partial = torch.empty((count, heads, splits, width), dtype=torch.float32, device=query.device)
        lse = torch.empty((count, heads, splits), dtype=torch.float32, device=query.device)
    _decode[(kv_heads, count, splits)](
        query, keys, values, table, rows, positions, query if picked is None else picked, out, partial, lse,
        scaling, softcap or 1.0, window or 0, heads, kv_heads, table.stride(0), splits,
        GROUP=group, GROUP_PAD=max(16, triton.next_power_of_2(group)), D=width, D_PAD=wide, BLOCK=block,
        SOFTCAP=softcap is not None, WINDOW=window is not None, SPLIT=splits > 1, PICKED=picked is not None,
        num_warps=warps, num_stages=stages, **pdl_options(query),
    )  # fmt: skip
    if splits > 1:
        _merge[(count * heads,)](
            partial, lse, query if picked is None else picked, out, splits, heads,
            D=width, D_PAD=wide, SPLITS=triton.next_power_of_2(splits), PICKED=picked is not None, num_warps=2,
            **pdl_options(query),
        )  # fmt: skip


def query_block(longest: int, width: int) -> int:
    """Queries a program of `extend` takes, for chunks of up to `longest` tokens and heads `width` wide."""
    return 128 if longest >= 128 and 64 < width <= 128 else 64


def extend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    out: torch.Tensor,
    blocks: tuple[torch.Tensor, torch.Tensor],
    rows: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    scaling: float,
    window: int | None,
    softcap: float | None,
    queries: int,
    causal: bool = True,
) -> None:
    """Chunks of any length. `query`, `out` `[tokens, heads, head_dim]`; `blocks` names, for each block of `queries`
    queries (`query_block`), its row (an index into `rows`) and its first query, long ones best first (`layout.cut`);
    `rows` are the rows' table rows, packed offsets, start positions and counts, int32 on the device; blocks of a row
    that counts none do nothing. Not `causal`: each query sees its whole row, or of it what is less than `window` before
    or after it."""
    _, heads, width = query.shape
    kv_heads = keys.shape[1]
    wide = max(16, triton.next_power_of_2(width))
    if query.dtype == torch.float32:
        block, warps, stages = 32, 4, 2
    else:
        block, warps, stages = (64, 4, 3) if wide <= 128 else (32, 4, 2)
        if queries == 128:
            warps, stages = 8, 5  # two turns of keys on their way, in 97 KB: any card has 99
    _extend[(heads, len(blocks[0]))](
        query, keys, values, table, out, *blocks, *rows, scaling, softcap or 1.0, window or 0, kv_heads,
        table.stride(0), heads * width, GROUP=heads // kv_heads, D=width, D_PAD=wide, QUERIES=queries, BLOCK=block,
        SOFTCAP=softcap is not None, WINDOW=window is not None, CAUSAL=causal, num_warps=warps, num_stages=stages,
    )  # fmt: skip
