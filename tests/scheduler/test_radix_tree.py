"""The radix tree against a dictionary from (root, tokens) to the slot of the last of them."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from softmux.scheduler.radix import Node, RadixTree, RootKey

ROOTS = [RootKey("a", None, "f", "d"), RootKey("a", "x", "f", "d"), RootKey("b", "x", "f", "d")]
TEXTS = st.lists(st.sampled_from([-2, -1, 0, 1]), min_size=1, max_size=9)


class RadixAgainstDictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.tree = RadixTree(1024)
        self.model: dict[tuple[RootKey, tuple[int, ...]], int] = {}
        self.held: list[tuple[Node, RootKey, tuple[int, ...]]] = []
        self.next_slot = 0

    def _new_slots(self, count: int) -> list[int]:
        self.next_slot += count
        return list(range(self.next_slot - count, self.next_slot))

    def _known(self, root: RootKey, tokens: list[int]) -> list[int]:
        """The slots of the longest prefix that the dictionary knows."""
        found = []
        for end in range(1, len(tokens) + 1):
            slot = self.model.get((root, tuple(tokens[:end])))
            if slot is None:
                break
            found.append(slot)
        return found

    def _forget(self, freed: list[int]) -> None:
        gone = set(freed)
        assert len(gone) == len(freed)
        for _, root, path in self.held:
            assert not gone & set(self._known(root, list(path))), "a slot was freed while it was held"
        before = len(self.model)
        self.model = {key: slot for key, slot in self.model.items() if slot not in gone}
        assert before - len(self.model) == len(gone), "a slot was freed that the tree did not have"

    @rule(root=st.sampled_from(ROOTS), tokens=TEXTS, begin=st.integers(0, 2), data=st.data())
    def match(self, root: RootKey, tokens: list[int], begin: int, data: st.DataObject) -> None:
        padded = [7] * begin + tokens
        end = data.draw(st.integers(begin, len(padded)))
        _, slots = self.tree.match(self.tree.root(root), padded, begin, end)
        assert slots == self._known(root, padded[begin:end])

    @rule(root=st.sampled_from(ROOTS), tokens=TEXTS)
    def append(self, root: RootKey, tokens: list[int]) -> None:
        node, known = self.tree.match(self.tree.root(root), tokens, 0, len(tokens))
        rest = tokens[len(known) :]
        if rest:
            slots = self._new_slots(len(rest))
            assert self.tree.append(node, rest, slots) is not None
            for i, slot in enumerate(slots):
                self.model[root, tuple(tokens[: len(known) + i + 1])] = slot

    @rule(root=st.sampled_from(ROOTS), tokens=TEXTS)
    def append_where_a_path_begins(self, root: RootKey, tokens: list[int]) -> None:
        if self._known(root, tokens[:1]):
            assert self.tree.append(self.tree.root(root), tokens, self._new_slots(len(tokens))) is None

    @rule(root=st.sampled_from(ROOTS), head=TEXTS, tail=TEXTS)
    def absorb(self, root: RootKey, head: list[int], tail: list[int]) -> None:
        node, known = self.tree.match(self.tree.root(root), head, 0, len(head))
        at = head[: len(known)]
        slots = self._new_slots(len(tail))
        have = len(self._known(root, at + tail)) - len(at)
        assert self.tree.absorb(node, tail, slots) == slots[:have], "what it had already is given back"
        for i in range(have, len(tail)):
            self.model[root, tuple(at + tail[: i + 1])] = slots[i]

    @rule(root=st.sampled_from(ROOTS), tokens=TEXTS)
    def lock(self, root: RootKey, tokens: list[int]) -> None:
        node, known = self.tree.match(self.tree.root(root), tokens, 0, len(tokens))
        self.tree.lock(node)
        self.held.append((node, root, tuple(tokens[: len(known)])))

    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        if self.held:
            node, root, path = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
            assert len(self._known(root, list(path))) == len(path)
            self.tree.unlock(node)

    @rule(count=st.integers(1, 12))
    def evict(self, count: int) -> None:
        evictable = self.tree.evictable
        freed = self.tree.evict(count)
        assert len(freed) >= min(count, evictable)
        self._forget(freed)

    @rule()
    def clear(self) -> None:
        if self.held:
            with pytest.raises(RuntimeError, match="hold"):
                self.tree.clear()
        else:
            self._forget(self.tree.clear())
            assert not self.model

    @invariant()
    def agrees(self) -> None:
        self.tree.check_integrity([node for node, _, _ in self.held])
        assert self.tree.tokens == len(self.model)
        locked = {slot for _, root, path in self.held for slot in self._known(root, list(path))}
        assert self.tree.evictable == len(self.model) - len(locked)


TestRadixAgainstDictionary = RadixAgainstDictionary.TestCase
TestRadixAgainstDictionary.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def grow(tree: RadixTree, tokens: list[int], slots: list[int]) -> None:
    tree.absorb(tree.root(ROOTS[0]), tokens, slots)


def test_the_least_recently_used_leaf_goes_first_and_a_used_one_later() -> None:
    tree = RadixTree(1024)
    grow(tree, [1, 2], [0, 1])
    grow(tree, [3, 4], [2, 3])
    grow(tree, [5, 6], [4, 5])
    tree.match(tree.root(ROOTS[0]), [1, 2], 0, 2)
    assert tree.evict(1) == [2, 3]
    assert tree.evict(1) == [4, 5]
    assert tree.evict(1) == [0, 1]
    assert tree.evict(1) == []


def test_only_the_used_half_of_an_edge_counts_as_used() -> None:
    tree = RadixTree(1024)
    grow(tree, [1, 2, 3, 4], [0, 1, 2, 3])
    grow(tree, [5], [4])
    tree.match(tree.root(ROOTS[0]), [1, 2, 9], 0, 3)
    assert tree.evict(1) == [2, 3]
    assert tree.evict(1) == [4]
    assert tree.evict(1) == [0, 1]


def test_what_is_come_back_to_outlives_texts_that_come_once() -> None:
    """Each request leaves a text: in the order of their last use they would take the place of every prompt."""
    tree = RadixTree(1024)
    grow(tree, [1, 2], [0, 1])
    for text in range(100, 120):
        grow(tree, [text, 0], [2 * text, 2 * text + 1])
        if text == 100:
            tree.match(tree.root(ROOTS[0]), [1, 2], 0, 2)
        if tree.tokens > 8:
            assert tree.evict(1) == [2 * (text - 3), 2 * (text - 3) + 1], "the oldest of the texts"
    assert tree.match(tree.root(ROOTS[0]), [1, 2], 0, 2)[1] == [0, 1]
    tree.check_integrity()


def test_texts_that_come_once_have_a_quarter_whatever_else_there_is() -> None:
    tree = RadixTree(1024)
    for text in range(13):
        grow(tree, [text, 0], [2 * text, 2 * text + 1])
    for text in range(9):
        tree.match(tree.root(ROOTS[0]), [text, 0], 0, 2)
    assert (tree.tokens, tree._leaves.once) == (26, 8)
    assert tree.evict(1) == [18, 19], "of nine that were found again, and four that were not, the latter's oldest"
    assert tree.evict(1) == [0, 1], "the latter are no more than a quarter now"
    assert tree.evict(1) == [20, 21]
    tree.check_integrity()


def test_a_prompt_that_comes_again_after_it_had_given_way_is_not_new() -> None:
    tree, adapter = RadixTree(1024), ROOTS[1]
    for turn in range(2):
        prompt = tree.append(tree.root(adapter), [-1, -2], [0, 1])
        assert prompt is not None
        text = tree.append(prompt, [5, turn], [2, 3])
        assert text is not None
        assert (prompt.again, text.again) == (turn == 1, False)
        tree.check_integrity()
        assert sorted(tree.evict(4)) == [0, 1, 2, 3]
    bare = tree.append(tree.root(ROOTS[0]), [5, 6], [0, 1])
    assert bare is not None
    assert not bare.again


def test_what_is_found_again_at_once_came_once_all_the_same() -> None:
    """A request's samples, and its labels, find what the first of them left; only then do others come."""
    tree, root = RadixTree(1024), ROOTS[0]
    for text in range(16):
        grow(tree, [text, 0], [2 * text, 2 * text + 1])
    for _ in range(3):
        node, slots = tree.match(tree.root(root), [15, 0], 0, 2)
        assert (slots, node.again) == ([30, 31], False)
    for text in range(16, 21):
        grow(tree, [text, 0], [2 * text, 2 * text + 1])
    assert not tree.match(tree.root(root), [15, 0], 0, 2)[0].again, "10 tokens of 42 have come since"
    grow(tree, [21, 0], [42, 43])
    node, _ = tree.match(tree.root(root), [15, 0], 0, 2, back=True)
    assert not node.again, "who left it has come back"
    node, _ = tree.match(tree.root(root), [15, 7], 0, 2)
    assert node.again
    assert not node.children[0].again, "the half that was not found"
    tree.check_integrity()


def test_a_leaf_that_nobody_held_when_it_was_found_again_goes_by_that_use() -> None:
    tree = RadixTree(1024)
    for text in range(3):
        grow(tree, [text, 0], [2 * text, 2 * text + 1])
    held, _ = tree.match(tree.root(ROOTS[0]), [2, 0], 0, 2)
    tree.lock(held)
    assert tree.absorb(tree.root(ROOTS[0]), [0, 0], [6, 7]) == [6, 7]
    node, _ = tree.match(tree.root(ROOTS[0]), [1, 0], 0, 2)
    tree.lock(node)
    tree.unlock(node)
    tree.check_integrity([held])
    assert tree.evict(1) == [0, 1], "both were found again, this one before the other"


def test_a_root_is_gone_with_the_last_who_held_it_where_nothing_is_below_it() -> None:
    """Encoders' and heads' rows leave nothing: their roots would stay for ever."""
    tree = RadixTree(1024)
    for number in range(50):
        root = tree.root(RootKey("a", f"digest {number}", "f", "d"))
        for _ in range(2):
            tree.lock(root)
        tree.unlock(root)
        assert list(tree.nodes()) == [root]
        tree.unlock(root)
        assert not list(tree.nodes())
    assert tree.evict(1) == []
    tree.check_integrity()


def test_a_prompt_is_new_where_none_was_computed_before_whoever_looked_for_it() -> None:
    tree, adapter = RadixTree(1024), ROOTS[1]
    root = tree.root(adapter)
    tree.lock(root)
    tree.unlock(root)
    assert tree.evict(1) == []
    prompt = tree.append(tree.root(adapter), [-1, -2], [0, 1])
    assert prompt is not None
    assert not prompt.again


def test_a_prompt_that_gave_way_below_a_root_that_is_held_is_not_new() -> None:
    tree, adapter = RadixTree(1024), ROOTS[1]
    root = tree.root(adapter)
    tree.lock(root)
    tree.append(root, [-1, -2], [0, 1])
    assert tree.evict(2) == [0, 1]
    prompt = tree.append(root, [-1, -2], [0, 1])
    assert prompt is not None
    assert prompt.again
    tree.check_integrity([root])


def test_letting_go_a_leaf_ten_thousand_times_keeps_the_list_of_candidates_short() -> None:
    tree = RadixTree(1024)
    for text in range(50):
        grow(tree, [text, 1], [2 * text, 2 * text + 1])
    for turn in range(10_000):
        node, _ = tree.match(tree.root(ROOTS[0]), [turn % 50, 1], 0, 2)
        tree.lock(node)
        tree.unlock(node)
    assert len(tree._leaves) <= 2048
    tree.check_integrity()
    assert sorted(tree.evict(100)) == list(range(100))
