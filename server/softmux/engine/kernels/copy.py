"""Tokens between far memory (the host's, page-locked, or the device's) and the slots of one tensor, in one launch.

A GPU reads and writes page-locked host memory by its address, so a step's copies need no call each: the kernel is
given the addresses. What they name must stay alive until the launch has ended.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_TILE = 2048
"""Words that a program has on its way: 16 KiB."""

WORD = 8
"""Bytes of a word: what is copied is looked at as int64, whatever its dtype."""


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


def copy_tokens(
    far: torch.Tensor, near: torch.Tensor, *, planes: int, width: int, to_near: bool, programs: int
) -> None:
    """`far` is `[3, tokens]` int64 on the device, by token: the address of its values in the first plane, the bytes
    from there to the next plane, its slot in `near`; `near` is `[planes…, slots, …]`, contiguous, a slot's values in
    one plane `width` words. Over PCIe a few `programs` are enough, and leave the multiprocessors to the step."""
    near_plane = near.numel() * near.element_size() // planes // WORD
    tokens = far.shape[1]
    words = min(256, triton.next_power_of_2(width))
    each = max(1, min(32, _TILE // words))
    jobs = triton.cdiv(tokens, each) * planes * triton.cdiv(width, words)
    _copy[(min(programs, jobs),)](
        far, near, near_plane, width, tokens, planes, TO_NEAR=to_near, T=each, W=words, num_warps=4
    )
