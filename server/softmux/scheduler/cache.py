"""The KV cache's books: which slots a sequence stands on, which of them it shares, and how room is made."""

from __future__ import annotations

from collections.abc import Iterable

from softmux.scheduler.radix import Node, RadixTree
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.slots import SlotPool


class PrefixCache:
    """A slot pool and the radix tree over it. Every slot is free, the tree's, or one running sequence's own.

    A sequence stands at a tree node (`node`), which it holds; the first `shared` of its slots lead there, those behind
    are its own. `enter` puts it at its root, `leave` takes it away; between the two it only goes down.
    """

    def __init__(self, slots: int) -> None:
        self.pool = SlotPool(slots)
        self.tree = RadixTree()

    @property
    def room(self) -> int:
        """Slots that are free, or can be freed without taking any from a sequence."""
        return self.pool.free + self.tree.evictable

    def take(self, count: int) -> list[int] | None:
        """`count` slots, the least recently used of the tree's giving way; None where there are not so many."""
        if self.pool.free < count:
            self.pool.give(self.tree.evict(count - self.pool.free))
        return self.pool.take(count) if self.pool.free >= count else None

    def enter(self, sequence: Sequence) -> None:
        """Puts a sequence that stands nowhere at its root."""
        sequence.node = self.tree.root(sequence.root)
        self.tree.lock(sequence.node)

    def follow(self, sequence: Sequence, end: int) -> None:
        """Moves a sequence down along what the tree knows of its tokens up to `end`.

        Nothing happens where it owns slots already: the rest is then its own, too.
        """
        if sequence.shared == sequence.computed and sequence.node is not None:
            node, slots = self.tree.match(sequence.node, sequence.tokens, sequence.computed, end)
            self._move(sequence, node, slots)

    def grow(self, sequence: Sequence, slots: list[int], *, owned: bool = False) -> None:
        """The sequence's next tokens go into `slots`. What it shares so far becomes longer by them, and others may
        use them from this very step on; they stay its own if `owned`, or where the tree has that path already."""
        start = sequence.computed
        if not owned and sequence.shared == start and sequence.node is not None:
            node = self.tree.append(sequence.node, sequence.tokens[start : start + len(slots)], slots)
            if node is not None:
                self._move(sequence, node, slots)
                return
        sequence.slots.extend(slots)
        sequence.computed += len(slots)

    def leave(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence away: what it computed alone goes into the tree (`keep`), or is given back."""
        assert sequence.node is not None
        known = min(sequence.computed, len(sequence.tokens)) if keep else sequence.shared
        own = sequence.slots[sequence.shared : known]
        self.pool.give(self.tree.absorb(sequence.node, sequence.tokens[sequence.shared : known], own))
        self.pool.give(sequence.slots[known:])
        self.tree.unlock(sequence.node)
        sequence.node = None
        sequence.slots = []
        sequence.computed = sequence.shared = 0

    def clear(self) -> None:
        """Forgets everything that no sequence stands on; none may stand on any."""
        self.pool.give(self.tree.clear())

    def _move(self, sequence: Sequence, node: Node, slots: list[int]) -> None:
        """`slots`, which end at `node`, are the sequence's next shared ones."""
        assert sequence.node is not None
        if node is sequence.node:
            return
        self.tree.lock(node)
        self.tree.unlock(sequence.node)
        sequence.node = node
        sequence.slots.extend(slots)
        sequence.computed += len(slots)
        sequence.shared = sequence.computed

    def check_integrity(self, running: Iterable[Sequence]) -> None:
        """Every slot and every reference is accounted for."""
        standing = [s for s in running if s.node is not None]
        own = [slot for s in standing for slot in s.slots[s.shared :]]
        self.pool.check_integrity(own + [slot for node in self.tree.nodes() for slot in node.slots])
        self.tree.check_integrity([s.node for s in standing if s.node is not None])
