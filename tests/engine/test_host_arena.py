"""Host memory that is taken once and handed out in parts: no two tensors overlap, and nothing is lost."""

from __future__ import annotations

import random

import pytest
import torch

from softmux.engine.arena import HostArena

SLAB = 1 << 16


def test_memory_comes_back_with_the_last_tensor_that_views_it() -> None:
    arena = HostArena(pinned=False, first_slab=SLAB)
    tensor = arena.empty((4, 16), torch.float32)
    assert arena.free == SLAB - 256
    row = tensor[2].view(torch.int32)
    del tensor
    assert arena.free == SLAB - 256
    del row
    assert arena.free == arena.size == SLAB


def test_a_tensor_larger_than_any_slab_gets_one_of_its_own_and_none_is_taken_without_room() -> None:
    arena = HostArena(pinned=False, first_slab=SLAB)
    assert arena.take((SLAB + 1,), torch.uint8) is None
    large = arena.empty((10 * SLAB,), torch.uint8)
    assert large.nbytes == 10 * SLAB
    assert arena.size == 11 * SLAB
    arena.grow()
    assert arena.size == 22 * SLAB
    assert arena.take((SLAB + 1,), torch.uint8) is not None


def test_neighbouring_parts_become_one_again() -> None:
    arena = HostArena(pinned=False, first_slab=SLAB)
    small = [arena.empty((1024,), torch.uint8) for _ in range(SLAB // 1024)]
    assert arena.take((1,), torch.uint8) is None
    del small
    whole = arena.take((SLAB,), torch.uint8)
    assert whole is not None
    assert arena.free == 0


@pytest.mark.parametrize("seed", range(3))
def test_random_takes_and_returns(seed: int) -> None:
    draw = random.Random(seed)
    arena = HostArena(pinned=False, first_slab=SLAB)
    held: dict[int, torch.Tensor] = {}
    for number in range(600):
        if held and draw.random() < 0.48:
            key = draw.choice(list(held))
            assert held.pop(key).eq(key % 251).all(), "someone else wrote into it"
        else:
            held[number] = arena.empty((draw.choice((1, 100, 256, 5000, 20000)),), torch.uint8).fill_(number % 251)
    used = sum(-(-tensor.nbytes // 256) * 256 for tensor in held.values())
    assert arena.free == arena.size - used
    held.clear()
    assert arena.free == arena.size


@pytest.mark.gpu
def test_a_gpu_reads_it_by_itself() -> None:
    arena = HostArena(pinned=True, first_slab=SLAB)
    assert arena.empty((4, 4), torch.bfloat16).is_pinned()
