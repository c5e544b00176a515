"""Which leaf of the prefix tree gives way next: of what came once and was not found again, or of what was.

After 2Q (Johnson and Shasha, "2Q: A Low Overhead High Performance Buffer Management Replacement Algorithm", VLDB 1994).
By last use alone, texts that come once would push out what everybody comes back to: with thousands of tasks, each
request leaves its text, twice as long as its task's prompt, where some other task's prompt had been.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from softmux.scheduler.radix import Node, RootKey

_SHARE = 4
"""What came once gives way first while it is more than one part in so many of what can give way: the paper's 25 %."""
_REMEMBERED = 2
"""Adapters whose prompts have given way, and would not be new if they came again, are as many as would fill one part in
so many of the pool: the paper's A1out, of 50 %. With more, those that hardly ever come push out those that do."""
_MOST_REMEMBERED = 1 << 18
"""Of prompts that are very short: some 30 MB."""

_Queue = list[tuple[int, int, "Node"]]


def is_another_use(came: int, tokens: int) -> bool:
    """Whether a use of what was left in a tree that has `tokens` is another request's, where `came` have come since.

    A request's samples, and the labels it compares, find soon what the first of them left: correlated uses, which say
    nothing of whether anybody will come back. As in the paper none counts while what came once has its share."""
    return came * _SHARE > tokens


class Leaves:
    """Leaves that nothing holds, in two queues by last use. Entries may be out of date, and are put right when their
    turn comes. `once` counts the tokens of nodes, leaves or not, that nothing holds and nobody has found again. The
    pool has room for `slots` tokens."""

    def __init__(self, slots: int) -> None:
        self.once = 0
        self._once: _Queue = []
        self._again: _Queue = []
        self._order = itertools.count()
        self._limit = 1024
        self._most = slots // _REMEMBERED
        self._tokens = 0
        self._gone: OrderedDict[int, int] = OrderedDict()
        """How long their prompts were, by hashes of their roots: names would outlive the adapters and tenants that had
        them, take three times as much, and be walked by each collection. Where two hashes are equal, a new prompt stays
        a while longer, and no more."""

    def offer(self, node: Node) -> None:
        """A node may have come to give way, or to give way later than it would have."""
        if node.refs == 0 and not node.children:
            heapq.heappush(self._again if node.again else self._once, (node.last_used, next(self._order), node))
            if len(self) > self._limit:
                self._drop_stale()

    def next(self, evictable: int) -> Node | None:
        """Takes the leaf out that gives way next, where there is one. `evictable`: tokens that nothing holds."""
        first, second = self._again, self._once
        if self.once * _SHARE > evictable:
            first, second = second, first
        while first or second:
            queue = first or second
            used, _, node = heapq.heappop(queue)
            if not node.attached or node.refs or node.children:
                continue
            if node.last_used == used and node.again is (queue is self._again):
                return node
            self.offer(node)  # used since it was offered: its turn comes later
        return None

    def remember(self, root: RootKey, tokens: int) -> None:
        """The last of what was below an adapter's root has given way; its prompt had so many tokens."""
        self._tokens -= self._gone.pop(hash(root), 0)
        if tokens > self._most:  # all others would have to be forgotten, and it, too
            return
        self._gone[hash(root)] = tokens
        self._tokens += tokens
        while self._tokens > self._most or len(self._gone) > _MOST_REMEMBERED:
            self._tokens -= self._gone.popitem(last=False)[1]

    def remembers(self, root: RootKey) -> int:
        """How long its prompt was, where it gave way not long ago, else 0; asked once."""
        tokens = self._gone.pop(hash(root), 0)
        self._tokens -= tokens
        return tokens

    def clear(self) -> None:
        self._once.clear()
        self._again.clear()
        self.once = 0

    def __len__(self) -> int:
        return len(self._once) + len(self._again)

    def queue(self, *, again: bool) -> Iterator[Node]:
        """What was offered as found again, or as not; not all of it may be a leaf any more."""
        return (node for _, _, node in (self._again if again else self._once))

    def _drop_stale(self) -> None:
        """A leaf is offered again each time it is let go; without evictions those entries would pile up."""
        offered = itertools.chain(self.queue(again=False), self.queue(again=True))
        leaves = {id(node): node for node in offered if node.attached and not node.children and node.refs == 0}
        for queue, again in ((self._once, False), (self._again, True)):
            queue[:] = [(node.last_used, next(self._order), node) for node in leaves.values() if node.again is again]
            heapq.heapify(queue)
        self._limit = max(1024, 4 * len(leaves))
