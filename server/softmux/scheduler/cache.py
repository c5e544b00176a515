"""The KV cache's books: which slots a sequence stands on, which of them it shares, and how room is made."""

from __future__ import annotations

from collections.abc import Collection

from softmux.scheduler.radix import Node, RadixTree
from softmux.scheduler.rows import RowTable
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.slots import SlotPool, Slots


class PrefixCache:
    """A slot pool and the radix tree over it. Every slot is free, the tree's, or one running sequence's own.

    A sequence stands at a tree node (`node`), which it holds; the first `shared` of its slots lead there, those behind
    are its own. `find` and `enter` put it there, `leave` takes it away; between the two it only goes down. Which slots
    it stands on is written in its row of `table`.
    """

    def __init__(self, slots: int, table: RowTable) -> None:
        self.pool = SlotPool(slots)
        self.tree = RadixTree(slots)
        self._table = table

    @property
    def room(self) -> int:
        """Slots that are free, or can be freed without taking any from a sequence."""
        return self.pool.free + self.tree.evictable

    def take(self, count: int) -> Slots | None:
        """`count` slots, the tree's giving way by its own order; None where there are not so many."""
        if self.pool.free < count:
            self.pool.give(self.tree.evict(count - self.pool.free))
        return self.pool.take(count) if self.pool.free >= count else None

    def find(self, sequence: Sequence, end: int) -> tuple[Node, list[int]]:
        """Where a sequence that stands nowhere could begin, by what the tree knows of its tokens up to `end`: a node,
        which is held for it until `enter` and `leave`, or `let_go`; and the slots that lead there."""
        back = sequence.preemptions > 0
        node, slots = self.tree.match(self.tree.root(sequence.root), sequence.spelled(end), 0, end, back=back)
        self.tree.lock(node)
        return node, slots

    def let_go(self, node: Node) -> None:
        self.tree.unlock(node)

    def enter(self, sequence: Sequence, node: Node, slots: list[int]) -> None:
        """Puts a sequence, newly seated, at a node that was found for it."""
        sequence.node, sequence.shared = node, len(slots)
        self._table.extend(sequence.row, slots, 0)

    def follow(self, sequence: Sequence, end: int) -> int:
        """Moves a sequence further down along what the tree knows of its tokens up to `end`; how far it is computed.

        Nothing happens where it owns slots already: the rest is then its own, too.
        """
        start = sequence.computed
        if start < end and sequence.shared == start and sequence.node is not None:
            node, slots = self.tree.match(sequence.node, sequence.spelled(end), start, end)
            if slots:
                self._table.extend(sequence.row, slots, start)
                self._move(sequence, node)
                return start + len(slots)
        return start

    def grow(self, sequence: Sequence, slots: Slots, *, share: bool = True) -> None:
        """The sequence's next tokens go into `slots`. What it shares so far becomes longer by them, and others may use
        them from this very step on; they are its own where the tree has that path already, or without `share`."""
        start, row = sequence.computed, sequence.row
        end = start + len(slots)
        self._table.extend(row, slots, start)
        if share and sequence.shared == start and sequence.node is not None:
            node: Node | None = sequence.node
            lead = sequence.lead if sequence.adapter is not None and start < sequence.lead < end else end
            for first, last in ((start, lead), (lead, end)):  # a prompt is a node of its own: its texts come and go
                if node is not None and first < last:
                    tokens = self._table.tokens[row, first:last].tolist()
                    node = self.tree.append(node, tokens, slots[first - start : last - start].tolist())
            if node is not None:
                self._move(sequence, node)

    def leave(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence away: what it computed alone goes into the tree (`keep`), or is given back."""
        assert sequence.node is not None
        table, row = self._table, sequence.row
        computed = sequence.computed
        known = min(computed, sequence.length) if keep else sequence.shared
        if known > sequence.shared:
            own = slice(sequence.shared, known)
            tokens, slots = table.tokens[row, own].tolist(), table.slots[row, own].tolist()
            self.pool.give(self.tree.absorb(sequence.node, tokens, slots))
        self.pool.give(table.slots[row, known:computed])
        self.tree.unlock(sequence.node)
        sequence.node, sequence.shared = None, 0

    def clear(self) -> None:
        """Forgets everything that no sequence stands on; none may stand on any."""
        self.pool.give(self.tree.clear())

    def _move(self, sequence: Sequence, node: Node) -> None:
        """All slots of the sequence are shared, and lead to `node`."""
        assert sequence.node is not None
        self.tree.lock(node)
        self.tree.unlock(sequence.node)
        sequence.node, sequence.shared = node, sequence.computed

    def check_integrity(self, running: Collection[Sequence]) -> None:
        """Every slot and every reference is accounted for."""
        own = [slot for s in running for slot in s.slots[s.shared :]]
        self.pool.check_integrity(own + [slot for node in self.tree.nodes() for slot in node.slots])
        self.tree.check_integrity([s.node for s in running if s.node is not None])
