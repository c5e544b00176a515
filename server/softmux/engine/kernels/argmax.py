"""The greedy token of every row, in two short launches: rows are few and vocabularies long."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options

_CHUNK = 4096


@triton.jit
def _best_of_chunk(logits_ptr, best_ptr, where_ptr, width, chunks, BLOCK: tl.constexpr, PDL: tl.constexpr):
    follows(PDL)
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * width + at, mask=at < width, other=-float("inf")).to(tl.float32)
    broken = tl.max((x != x).to(tl.int32), 0)
    best, where = tl.max(x, 0, return_indices=True)
    tl.store(best_ptr + row * chunks + chunk, tl.where(broken > 0, float("nan"), best))
    tl.store(where_ptr + row * chunks + chunk, chunk * BLOCK + where)


@triton.jit
def _best_of_row(
    best_ptr, where_ptr, out_ptr, rows_ptr, last_tokens_ptr, chunks,
    BLOCK: tl.constexpr, KEEP: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(best_ptr + row * chunks + at, mask=at < chunks, other=-float("inf"))
    broken = tl.max((x != x).to(tl.int32), 0)
    best, first = tl.max(x, 0, return_indices=True)
    token = tl.load(where_ptr + row * chunks + first)
    finite = (broken == 0) & (best > -float("inf")) & (best < float("inf"))
    tl.store(out_ptr + row, tl.where(finite, token, -1).to(tl.int64))
    if KEEP:
        tl.store(last_tokens_ptr + tl.load(rows_ptr + row), tl.where(finite, token, 0).to(tl.int64))


def argmax(
    logits: torch.Tensor, rows_of: torch.Tensor | None = None, last_tokens: torch.Tensor | None = None
) -> torch.Tensor:
    """`[rows, vocab]` → `[rows]` int64: the first of a row's highest, −1 where the row has NaN or its best is not
    finite. With `rows_of` `[rows]` int32, row i's choice goes to `last_tokens[rows_of[i]]`, too (0 for −1)."""
    rows, width = logits.shape
    chunks = triton.cdiv(width, _CHUNK)
    best = torch.empty((rows, chunks), dtype=torch.float32, device=logits.device)
    where = torch.empty((rows, chunks), dtype=torch.int32, device=logits.device)
    out = torch.empty(rows, dtype=torch.int64, device=logits.device)
    options = pdl_options(logits)
    _best_of_chunk[(rows, chunks)](logits, best, where, width, chunks, BLOCK=_CHUNK, num_warps=8, **options)
    keep = rows_of is not None
    _best_of_row[(rows,)](
        best, where, out, rows_of if keep else where, last_tokens if keep else out, chunks,
        BLOCK=triton.next_power_of_2(chunks), KEEP=keep, num_warps=1, **options,
    )  # fmt: skip
    return out
