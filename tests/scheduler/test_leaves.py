"""What is remembered of prompts that gave way."""

from __future__ import annotations

import weakref

import pytest

from softmux.scheduler import leaves
from softmux.scheduler.radix import RadixTree, RootKey


class Digest(str):
    """One of which it can be told whether anybody keeps it."""


def test_of_an_adapter_whose_prompt_gave_way_no_name_is_kept() -> None:
    """It may have been replaced, and then its root is never asked for again."""
    tree = RadixTree(1024)

    def come_and_go(number: int) -> weakref.ref[Digest]:
        digest = Digest(f"digest {number}")
        tree.append(tree.root(RootKey("a", digest, "f", "d")), [-1, -2], [0, 1])
        assert tree.evict(2) == [0, 1]
        return weakref.ref(digest)

    assert [kept() for kept in map(come_and_go, range(50))] == [None] * 50
    prompt = tree.append(tree.root(RootKey("a", "digest 7", "f", "d")), [-1, -2], [0, 1])
    assert prompt is not None
    assert prompt.again, "it is known all the same"


ROOTS = [RootKey("a", f"digest {number}", "f", "d") for number in range(20)]


def come_and_go(tree: RadixTree, root: RootKey, length: int) -> None:
    tree.append(tree.root(root), [-1 - i for i in range(length)], list(range(length)))
    assert tree.evict(length) == list(range(length))


@pytest.mark.parametrize(("slots", "length", "known"), [(32, 2, 8), (32, 4, 4), (64, 4, 8), (32, 17, 0)])
def test_prompts_that_gave_way_and_would_fill_half_the_pool_are_not_new(slots: int, length: int, known: int) -> None:
    tree = RadixTree(slots)
    for root in ROOTS:
        come_and_go(tree, root, length)
    assert [tree.root(root).again for root in ROOTS] == [False] * (20 - known) + [True] * known


def test_a_prompt_that_was_asked_for_and_did_not_come_is_remembered_as_it_was() -> None:
    tree = RadixTree(32)
    for _ in range(20):
        come_and_go(tree, ROOTS[0], 2)
        asked = tree.root(ROOTS[0])  # and its request ends before the prompt is there
        tree.lock(asked)
        tree.unlock(asked)
    for root in ROOTS[1:8]:
        come_and_go(tree, root, 2)
    assert tree.root(ROOTS[0]).again, "eight fill the half"
    for root in ROOTS[8:16]:
        come_and_go(tree, root, 2)
    assert [tree.root(root).again for root in ROOTS[1:8]] == [False] * 7


def test_very_short_prompts_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "_MOST_REMEMBERED", 3)
    tree = RadixTree(1024)
    for root in ROOTS:
        come_and_go(tree, root, 1)
    assert [tree.root(root).again for root in ROOTS] == [False] * 17 + [True] * 3


def test_a_prompt_of_more_than_half_the_pool_takes_no_others_place() -> None:
    tree = RadixTree(32)
    for root in ROOTS[:4]:
        come_and_go(tree, root, 2)
    come_and_go(tree, ROOTS[5], 17)
    assert [tree.root(root).again for root in (*ROOTS[:4], ROOTS[5])] == [True] * 4 + [False]


def test_a_prompt_that_came_in_several_steps_is_remembered_whole() -> None:
    tree = RadixTree(32)
    for root in ROOTS:
        first = tree.append(tree.root(root), [-1, -2], [0, 1])
        assert first is not None
        tree.append(first, [-3, -4], [2, 3])
        assert sorted(tree.evict(4)) == [0, 1, 2, 3]
    assert [tree.root(root).again for root in ROOTS] == [False] * 16 + [True] * 4, "four of four tokens fill the half"
