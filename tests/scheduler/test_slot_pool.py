"""The free list behind the KV pool."""

from __future__ import annotations

import random

import pytest

from softmux.scheduler.slots import SlotPool


def test_slots_are_handed_out_once_until_given_back() -> None:
    pool, draw, held = SlotPool(64), random.Random(0), []
    for _ in range(500):
        if draw.random() < 0.5:
            held += pool.take(draw.randint(0, min(9, pool.free))).tolist()
        else:
            cut = draw.randint(0, len(held))
            pool.give(held[cut:])
            del held[cut:]
        assert pool.free + len(held) == 64
        pool.check_integrity(held)


def test_asking_for_more_than_is_free_says_so_and_takes_nothing() -> None:
    pool = SlotPool(4)
    pool.take(3)
    with pytest.raises(RuntimeError, match="asked for 2 KV slots, 1 are free"):
        pool.take(2)
    assert pool.free == 1


def test_integrity_names_a_leak_and_a_double() -> None:
    pool = SlotPool(4)
    held = pool.take(2).tolist()
    with pytest.raises(AssertionError, match="leaked"):
        pool.check_integrity(held[:1])
    pool.give(held[:1])
    with pytest.raises(AssertionError, match="counted twice: 1"):
        pool.check_integrity(held)


def test_more_can_not_be_given_back_than_was_taken() -> None:
    pool = SlotPool(4)
    held = pool.take(2).tolist()
    with pytest.raises(RuntimeError, match="3 KV slots are given back, 2 were out"):
        pool.give([*held, 0])
