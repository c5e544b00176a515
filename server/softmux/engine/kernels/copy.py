"""Tokens between far memory (the host's, page-locked, or the device's) and the slots of one tensor, in one launch.

A GPU reads and writes page-locked host memory by its address, so a step's copies need no call each: the kernel is
given the addresses. What they name must stay alive until the launch has ended.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl

_TILE = 2048
"""Words that a program has on its way: 16 KiB."""

WORD = 8
"""Bytes of a word: what is copied is looked at as int64, whatever its dtype."""

_ALIGNED, _INT32 = 16, 1 << 31
"""Addresses that are multiples of the one, and numbers below the other, are variants of their own to Triton."""


@triton.jit(do_not_specialize=["near_plane", "tokens", "planes"])  # no step waits for a variant to be compiled
def _copy(
    far_ptr, near_ptr, near_plane, width, tokens, planes, TO_NEAR: tl.constexpr, T: tl.constexpr, W: tl.constexpr
):
    words = near_ptr.to(tl.pointer_type(tl.int64))
    blocks = tl.cdiv(tokens, T)
    chunks = tl.cdiv(width, W)
    for job in range(tl.program_id(0), blocks * planes * chunks, tl.num_programs(0)):
        plane = (job // (blocks * chunks)).to(tl.int64)
        at = (job // chunks) % blocks * T + tl.arange(0, T)
        word = job % chunks * W + tl.arange(0, W)
        live = at < tokens
        address = tl.load(far_ptr + at, mask=live, other=0)
        stride = tl.load(far_ptr + tokens + at, mask=live, other=0)
        slot = tl.load(far_ptr + 2 * tokens + at, mask=live, other=0)
        mask = live[:, None] & (word < width)[None, :]
        far = (address + plane * stride).to(tl.pointer_type(tl.int64))[:, None] + word[None, :]
        near = words + (plane * near_plane + slot * width)[:, None] + word[None, :]
        if TO_NEAR:
            tl.store(near, tl.load(far, mask=mask), mask=mask)
        else:
            tl.store(far, tl.load(near, mask=mask), mask=mask)


@functools.cache
def _tile(width: int) -> tuple[int, int]:
    """Tokens and words of one job, where a token has `width` words."""
    words = min(256, triton.next_power_of_2(width))
    return max(1, min(32, _TILE // words)), words


def jobs_of(tokens: int, planes: int, width: int) -> int:
    """In how many parts a launch does such a copy."""
    each, words = _tile(width)
    return -(-tokens // each) * planes * -(-width // words)


class CopyTokens:
    """Copies tokens between far and near memory, a launch for all.

    With `keep`, a variant's compiled kernel is launched directly after its first time: Triton's dispatcher looks at
    each argument anew at every launch, which takes the host longer than all else that one adapter's copy needs. What
    the dispatcher would tell variants apart by is in the key under which a kernel is kept.
    """

    def __init__(self, *, keep: bool) -> None:
        self._keep = keep
        self._kept: dict[tuple[object, ...], Any] = {}

    def __call__(
        self,
        far: torch.Tensor,
        near: torch.Tensor,
        *,
        planes: int,
        width: int,
        to_near: bool,
        programs: int,
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        """`far` is `[3, tokens]` int64, on the device or page-locked, by token: the address of its values in the first
        plane, the bytes from there to the next plane, its slot in `near`; `near` is `[planes…, slots, …]`, contiguous,
        a slot's values in one plane `width` words. Over PCIe a few `programs` are enough, and leave the
        multiprocessors to the step. On `stream`, or the current one."""
        near_plane = near.numel() * near.element_size() // planes // WORD
        tokens = far.shape[1]
        each, words = _tile(width)
        grid = (min(programs, jobs_of(tokens, planes, width)), 1, 1)
        aligned = far.data_ptr() % _ALIGNED == 0, near.data_ptr() % _ALIGNED == 0
        small = near_plane < _INT32, near.untyped_storage().nbytes() < _INT32  # the latter to AMD's compiler
        key = (near.dtype, near.get_device(), width, to_near, aligned, small)
        kept = self._kept.get(key)
        if kept is not None:
            on = None if stream is None else stream.cuda_stream
            kept[grid](far, near, near_plane, width, tokens, planes, to_near, each, words, stream=on)
            return
        with torch.cuda.stream(stream):
            kernel = _copy[grid](
                far, near, near_plane, width, tokens, planes, TO_NEAR=to_near, T=each, W=words, num_warps=4
            )
        if self._keep and kernel is not None:  # Triton's interpreter gives none
            self._kept[key] = kernel
