"""Low-rank updates of many adapters in one packed step, added onto a product's output: `y[t] += (x[t] · aᵀ) · b`.

Which adapter a token belongs to is a slot number, and what a slot holds is told by a small table, so that slots change
hands under a captured graph. Two launches (Punica, 2310.18547): *shrink* brings each token down to its adapter's rank,
*expand* brings that up again and adds it. Ranks are the adapters' own: nothing is padded to the largest of them.

Tokens come in blocks of neighbours with one slot: of single tokens (`LEN` 1: sums, for decoding), or of up to `LEN`
tokens (`tl.dot`, for inputs). A block whose slot is −1, or whose adapter leaves this product alone, is left at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options

ENTRY = 4
"""int32 numbers of the table for each module in each slot: rank (0: none), where a and b begin, one spare."""
UNIT = 16
"""What begins are counted in: numbers of the weights' dtype."""
RANKS = 16
"""Ranks at a time; also the least that `tl.dot` takes."""
OUTPUTS = 128
"""Outputs of a module that one program of *expand* adds to."""

_SPLIT = 1024
_MOST_SPLITS = 8
_LENGTH = 32


class Blocks(NamedTuple):
    """A step's tokens as blocks, int32 on the device: `slots [blocks]`; `starts` and `counts` too, where a block may
    have several tokens, or else None: block i is token i."""

    slots: torch.Tensor
    starts: torch.Tensor | None = None
    counts: torch.Tensor | None = None

    @staticmethod
    def length() -> int:
        """Tokens of a block at most."""
        return _LENGTH


@triton.jit(do_not_specialize=["tokens", "column"])  # they differ from step to step, and from layer to layer
def _shrink(
    x_ptr, weights_ptr, table_ptr, slots_ptr, starts_ptr, counts_ptr, h_ptr,
    width, split_width, tokens, entries, column, room,
    LEN: tl.constexpr, BLOCK: tl.constexpr, SEGMENTS: tl.constexpr, RANK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    block, segment, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    slot = tl.load(slots_ptr + block)
    if slot >= 0:
        entry = table_ptr + (slot * entries + column + segment) * 4
        rank = tl.load(entry)
        a_ptr = weights_ptr + tl.load(entry + 1).to(tl.int64) * 16
        begin = split * split_width
        end = tl.minimum(width, begin + split_width)
        for first in range(0, rank, RANK):
            r = first + tl.arange(0, RANK)
            k = tl.arange(0, BLOCK)
            if LEN == 1:
                sums = tl.zeros([RANK, BLOCK], tl.float32)
                for at in range(begin, end, BLOCK):
                    inside = at + k < end
                    x = tl.load(x_ptr + block.to(tl.int64) * width + at + k, mask=inside, other=0.0)
                    mask = (r < rank)[:, None] & inside[None, :]
                    a = tl.load(a_ptr + r[:, None] * width + (at + k)[None, :], mask=mask, other=0.0)
                    sums += a.to(tl.float32) * x.to(tl.float32)[None, :]
                h = h_ptr + ((split * tokens + block).to(tl.int64) * SEGMENTS + segment) * room + r
                tl.store(h, tl.sum(sums, 1), mask=r < rank)
            else:
                t = tl.arange(0, LEN)
                live = t < tl.load(counts_ptr + block)
                token = (tl.load(starts_ptr + block) + t).to(tl.int64)
                found = tl.zeros([LEN, RANK], tl.float32)
                for at in range(begin, end, BLOCK):
                    inside = at + k < end
                    mask = live[:, None] & inside[None, :]
                    x = tl.load(x_ptr + token[:, None] * width + (at + k)[None, :], mask=mask, other=0.0)
                    mask = (r < rank)[None, :] & inside[:, None]
                    a = tl.load(a_ptr + r[None, :] * width + (at + k)[:, None], mask=mask, other=0.0)
                    found = tl.dot(x, a, found, input_precision="ieee")
                h = h_ptr + ((split * tokens + token) * SEGMENTS + segment)[:, None] * room + r[None, :]
                tl.store(h, found, mask=live[:, None] & (r < rank)[None, :])


@triton.jit(do_not_specialize=["tokens", "column"])
def _expand(
    y_ptr, weights_ptr, table_ptr, slots_ptr, starts_ptr, counts_ptr, h_ptr, tiles_ptr,
    outputs, tokens, entries, column, room,
    LEN: tl.constexpr, OUT: tl.constexpr, SEGMENTS: tl.constexpr, SPLITS: tl.constexpr, RANK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    block = tl.program_id(0)
    tile = tiles_ptr + tl.program_id(1) * 4
    slot = tl.load(slots_ptr + block)
    if slot >= 0:
        segment = tl.load(tile)
        entry = table_ptr + (slot * entries + column + segment) * 4
        rank = tl.load(entry)
        if rank > 0:
            b_ptr = weights_ptr + tl.load(entry + 2).to(tl.int64) * 16
            o = tl.load(tile + 1) + tl.arange(0, OUT)
            size = tl.load(tile + 2)
            inside = o < size
            y_ptr += tl.load(tile + 3)
            if LEN == 1:
                sums = tl.zeros([OUT], tl.float32)
                for first in range(0, rank, RANK):
                    r = first + tl.arange(0, RANK)
                    h = tl.zeros([RANK], tl.float32)
                    for split in tl.static_range(SPLITS):
                        place = ((split * tokens + block).to(tl.int64) * SEGMENTS + segment) * room
                        h += tl.load(h_ptr + place + r, mask=r < rank, other=0.0)
                    mask = (r < rank)[:, None] & inside[None, :]
                    b = tl.load(b_ptr + r[:, None] * size + o[None, :], mask=mask, other=0.0)
                    sums += tl.sum(h[:, None] * b.to(tl.float32), 0)
                y = y_ptr + block.to(tl.int64) * outputs + o
                tl.store(y, (tl.load(y, mask=inside, other=0.0).to(tl.float32) + sums).to(y_ptr.dtype.element_ty),
                         mask=inside)  # fmt: skip
            else:
                t = tl.arange(0, LEN)
                live = t < tl.load(counts_ptr + block)
                token = (tl.load(starts_ptr + block) + t).to(tl.int64)
                found = tl.zeros([LEN, OUT], tl.float32)
                for first in range(0, rank, RANK):
                    r = first + tl.arange(0, RANK)
                    known = live[:, None] & (r < rank)[None, :]
                    h = tl.zeros([LEN, RANK], tl.float32)
                    for split in tl.static_range(SPLITS):
                        place = ((split * tokens + token) * SEGMENTS + segment) * room
                        h += tl.load(h_ptr + place[:, None] + r[None, :], mask=known, other=0.0)
                    mask = (r < rank)[:, None] & inside[None, :]
                    b = tl.load(b_ptr + r[:, None] * size + o[None, :], mask=mask, other=0.0)
                    found = tl.dot(h.to(b.dtype), b, found, input_precision="ieee")
                y = y_ptr + token[:, None] * outputs + o[None, :]
                mask = live[:, None] & inside[None, :]
                tl.store(y, (tl.load(y, mask=mask, other=0.0).to(tl.float32) + found).to(y_ptr.dtype.element_ty),
                         mask=mask)  # fmt: skip


def tiles_of(outputs: list[int], device: torch.device) -> torch.Tensor:
    """`[tiles, 4]` int32 for `add_lora`: how *expand* cuts modules of that many outputs, which lie side by side in y:
    the module, the tile's first output in it, its outputs in all, where they begin in y."""
    begin, rows = 0, []
    for segment, size in enumerate(outputs):
        rows += [[segment, first, size, begin] for first in range(0, size, OUTPUTS)]
        begin += size
    return torch.tensor(rows, dtype=torch.int32, device=device)


def scratch_numbers(tokens: int, segments: int, room: int, width: int) -> int:
    """float32 numbers that `add_lora` needs for what lies between its launches."""
    return _splits(width) * tokens * segments * room


def _splits(width: int) -> int:
    return min(_MOST_SPLITS, -(-width // _SPLIT))


def add_lora(
    y: torch.Tensor, x: torch.Tensor, weights: torch.Tensor, table: torch.Tensor, column: int, segments: int,
    tiles: torch.Tensor, blocks: Blocks, scratch: torch.Tensor, room: int,
) -> None:  # fmt: skip
    """Adds to `y [tokens, outputs]`, contiguous, what the adapters make of `x [tokens, width]`, contiguous.

    `table [slots, modules, ENTRY]` int32 says where in `weights` (one dimension) each slot's a `[rank, width]` and
    b `[rank, outputs]` begin, b with the scaling in it; this product's modules are the `segments` from `column` on.
    `room` bounds the ranks, `scratch` has `scratch_numbers` numbers.
    """
    tokens, width = x.shape
    many = blocks.starts is not None
    length = _LENGTH if many else 1
    splits = _splits(width)
    block = min(64 if many else 256, triton.next_power_of_2(width))
    split_width = triton.cdiv(triton.cdiv(width, splits), block) * block
    starts, counts = (blocks.starts, blocks.counts) if many else (blocks.slots, blocks.slots)
    count, entries = blocks.slots.shape[0], table.shape[1]
    _shrink[(count, segments, splits)](
        x, weights, table, blocks.slots, starts, counts, scratch, width, split_width, tokens, entries, column, room,
        LEN=length, BLOCK=max(16, block), SEGMENTS=segments, RANK=RANKS, num_warps=4, **pdl_options(x),
    )  # fmt: skip
    _expand[(count, tiles.shape[0])](
        y, weights, table, blocks.slots, starts, counts, scratch, tiles, y.shape[1], tokens, entries, column, room,
        LEN=length, OUT=OUTPUTS, SEGMENTS=segments, SPLITS=splits, RANK=RANKS, num_warps=4, **pdl_options(x),
    )  # fmt: skip
