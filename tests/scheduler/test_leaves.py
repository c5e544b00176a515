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
    tree = RadixTree()

    def come_and_go(number: int) -> weakref.ref[Digest]:
        digest = Digest(f"digest {number}")
        tree.append(tree.root(RootKey("a", digest, "f", "d")), [-1, -2], [0, 1])
        assert tree.evict(2) == [0, 1]
        return weakref.ref(digest)

    assert [kept() for kept in map(come_and_go, range(50))] == [None] * 50
    prompt = tree.append(tree.root(RootKey("a", "digest 7", "f", "d")), [-1, -2], [0, 1])
    assert prompt is not None
    assert prompt.again, "it is known all the same"


def test_only_the_latest_prompts_that_gave_way_are_not_new(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaves, "_REMEMBERED", 8)
    tree = RadixTree()
    roots = [RootKey("a", f"digest {number}", "f", "d") for number in range(9)]
    for root in roots:
        tree.append(tree.root(root), [-1, -2], [0, 1])
        assert tree.evict(2) == [0, 1]
    again = [tree.root(root).again for root in roots]
    assert again == [False] + [True] * 8
