"""A decode step's first launch: its rows' new entries in the slot table, and the embeddings of their tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from softmux.engine.kernels.launch import follows, pdl_options


@triton.jit
def _begin_step(
    inputs_ptr, table_ptr, last_tokens_ptr, weight_ptr, out_ptr, count, table_stride, width,
    BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    follows(PDL)
    at = tl.program_id(0)
    token = tl.load(inputs_ptr + at).to(tl.int64)
    row = tl.load(inputs_ptr + count + at).to(tl.int64)
    if tl.program_id(1) == 0:
        position = tl.load(inputs_ptr + 2 * count + at)
        slot = tl.load(inputs_ptr + 3 * count + at)
        tl.store(table_ptr + row * table_stride + position, slot)
    if token < 0:
        token = tl.load(last_tokens_ptr + row)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(weight_ptr + token * width + d, mask=d < width, other=0.0)
    tl.store(out_ptr + at.to(tl.int64) * width + d, x, mask=d < width)


def begin_step(
    inputs: torch.Tensor, table: torch.Tensor, last_tokens: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """`inputs` `[4, rows]` int32: token ids (−1: the row's `last_tokens`), table rows, positions, slots. Writes each
    slot into `table` and returns the tokens' rows of `weight` `[vocab, hidden]`, `[rows, hidden]`."""
    rows, width = inputs.shape[1], weight.shape[1]
    out = torch.empty((rows, width), dtype=weight.dtype, device=weight.device)
    block = min(2048, triton.next_power_of_2(width))
    _begin_step[(rows, triton.cdiv(width, block))](
        inputs, table, last_tokens, weight, out, rows, table.stride(0), width, BLOCK=block, num_warps=4,
        **pdl_options(inputs),
    )  # fmt: skip
    return out
