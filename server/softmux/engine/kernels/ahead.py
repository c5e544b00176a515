"""Weights on their way to the L2 cache before their product begins.

A norm of one row keeps one multiprocessor busy for two microseconds, in which memory could have moved eight megabytes.
So a short kernel is launched with spare programs that ask for what the next product reads: they wait for nothing, and
nothing waits for them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda

_LINE = 128
_MOST_BYTES = 16 << 20
"""At once: a third of an H100's L2 cache."""
_MOST_TOKENS = 512
"""In larger steps arithmetic rules, not memory."""
SPARE = 128
"""Programs that ask."""


@triton.jit
def fetch_ahead(ptr, lines, part, parts, LINES: tl.constexpr, PDL: tl.constexpr):
    """Asks for this part's share of the first `lines` lines of 128 bytes from `ptr` on."""
    if PDL:
        tl_cuda.gdc_launch_dependents()
    base = ptr.to(tl.pointer_type(tl.uint8))
    for at in range(part * LINES, lines, parts * LINES):
        line = tl.minimum(at + tl.arange(0, LINES), lines - 1).to(tl.int64)
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l", [base + line * 128], dtype=tl.int32, is_pure=False,
            pack=1,
        )  # fmt: skip


def lines_ahead(weight: torch.Tensor | None, tokens: int) -> int:
    """How many lines of `weight` a step of so many tokens asks for ahead of its product; 0: none."""
    if weight is None or not weight.is_cuda or tokens > _MOST_TOKENS:
        return 0
    return min(weight.nbytes, _MOST_BYTES) // _LINE
