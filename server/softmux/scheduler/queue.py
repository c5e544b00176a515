"""Who waits, and who is next: the tenant that has had least, and of its sequences the first, its neighbours with it."""

from __future__ import annotations

import bisect
import heapq
from collections import defaultdict
from collections.abc import Iterator

from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Place, Sequence

Line = list[Sequence]
"""The sequences of one root that wait, by their places."""


class TenantLines:
    """What waits of one tenant: a line for each root, served by the place of its first. The first of all is always
    next, so no line starves. A parked line (its adapter is on its way to host memory) is passed over until `unpark`."""

    def __init__(self) -> None:
        self._lines: dict[RootKey, Line] = {}
        self._turns: list[tuple[Place, RootKey]] = []
        self._parked: set[RootKey] = set()
        self.length = 0

    def __contains__(self, root: RootKey) -> bool:
        return root in self._lines

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def push(self, sequence: Sequence) -> bool:
        """Whether it is the first of its line now."""
        line = self._lines.setdefault(sequence.root, [])
        if not line or line[-1].place <= sequence.place:  # it came last, as a rule
            line.append(sequence)
        else:
            bisect.insort(line, sequence, key=_place)
        self.length += 1
        if line[0] is not sequence:
            return False
        self._offer(sequence.root)
        return True

    def _offer(self, root: RootKey) -> None:
        line = self._lines.get(root)
        if line and root not in self._parked:
            heapq.heappush(self._turns, (line[0].place, root))

    def line(self, root: RootKey) -> Line | None:
        """That line, where someone waits in it and it is not parked."""
        return None if root in self._parked else self._lines.get(root)

    def next_line(self) -> Line | None:
        """The line whose first comes before all others'. Stays in place: `remove` from it, `park` it, or call again."""
        while self._turns:
            place, root = self._turns[0]
            line = self._lines.get(root)
            if line and line[0].place == place and root not in self._parked:
                return line
            heapq.heappop(self._turns)
        return None

    def last(self) -> Sequence | None:
        """The last that has never had a row."""
        ends = (next((s for s in reversed(line) if s.first_scheduled is None), None) for line in self._lines.values())
        return max((one for one in ends if one is not None), key=_place, default=None)

    def park(self, root: RootKey) -> None:
        self._parked.add(root)

    def unpark(self, root: RootKey) -> None:
        if root in self._parked:
            self._parked.discard(root)
            self._offer(root)

    def pop(self, root: RootKey) -> Sequence:
        """Takes out the first of a line that is open."""
        line = self.line(root)
        assert line, "only an open line has a first"
        first = line.pop(0)
        self._shortened(root, line)
        return first

    def remove(self, sequence: Sequence) -> bool:
        line = self._lines.get(sequence.root)
        if line is None or sequence not in line:
            return False
        if line[0] is sequence:
            del line[0]
            self._shortened(sequence.root, line)
        else:
            line.remove(sequence)
            self.length -= 1
        return True

    def _shortened(self, root: RootKey, line: Line) -> None:
        """The line's first has left it."""
        self.length -= 1
        if line:
            self._offer(root)
        else:
            del self._lines[root]
            self._parked.discard(root)


class WaitingQueue:
    """Every tenant's lines, and `counters` told of who waits: a tenant does while a line of it is not parked.

    With `group` above one, up to that many of a line go in before another line of their tenant has its turn: rows of
    one adapter then share one cold prompt and one part of the tree.
    """

    def __init__(self, counters: VirtualTokenCounters, group: int = 8) -> None:
        self.group = group
        self._counters = counters
        self._tenants: defaultdict[str, TenantLines] = defaultdict(TenantLines)
        self._open: dict[int, TenantLines] = {}
        """Those that wait, by their tenants' numbers."""
        self._queued: dict[int, TenantLines] = {}
        """All, by their tenants' numbers."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, root: RootKey) -> bool:
        """Whether anyone waits in that line."""
        return root.tenant in self._tenants and root in self._tenants[root.tenant]

    def __iter__(self) -> Iterator[Sequence]:
        for lines in self._tenants.values():
            yield from lines

    @property
    def movable(self) -> bool:
        """Whether anyone waits for no more than a turn."""
        return bool(self._open)

    def push(self, sequence: Sequence) -> None:
        """Takes its place: a newcomer behind those of its priority, a preempted one before all that came after it."""
        lines = self._tenants[sequence.root.tenant]
        self._length += 1
        if lines.push(sequence):
            self._tell(sequence.root.tenant)
        else:  # whose turn it is stays as it was
            self._counters.grew(self._counters.number(sequence.root.tenant), lines.length)

    def next_tenant(self) -> int | None:
        """The number of who has had least of the tenants that wait; between equals, of whose next came first."""
        return self._counters.least()

    def next_line(self, tenant: int | None = None) -> Line | None:
        """The first line of a tenant that waits (None: of the one whose turn it is), or None where nobody does."""
        tenant = self.next_tenant() if tenant is None else tenant
        return self._open[tenant].next_line() if tenant in self._open else None

    def line(self, root: RootKey) -> Line | None:
        """That line, where someone waits in it and it is not parked."""
        return self._tenants[root.tenant].line(root) if root.tenant in self._tenants else None

    def pop(self, root: RootKey) -> Sequence:
        """Takes out the first of a line."""
        first = self._tenants[root.tenant].pop(root)
        self._length -= 1
        self._tell(root.tenant)
        return first

    def park(self, root: RootKey) -> None:
        if root in self:
            self._tenants[root.tenant].park(root)
            self._tell(root.tenant)

    def unpark(self, root: RootKey) -> None:
        if root in self:
            self._tenants[root.tenant].unpark(root)
            self._tell(root.tenant)

    def remove(self, sequence: Sequence) -> bool:
        tenant = sequence.root.tenant
        if tenant not in self._tenants or not self._tenants[tenant].remove(sequence):
            return False
        self._length -= 1
        self._tell(tenant)
        return True

    def last_of(self, tenant: int) -> Sequence | None:
        """The last of a tenant's that has never had a row."""
        return self._queued[tenant].last()

    def waiting_of(self, tenant: str) -> int:
        """How many of its sequences wait."""
        return self._tenants[tenant].length if tenant in self._tenants else 0

    def _tell(self, tenant: str) -> None:
        """A tenant's lines have changed."""
        lines, number = self._tenants[tenant], self._counters.number(tenant)
        line = lines.next_line()
        self._counters.queue(number, lines.length, line[0].order if line else None)
        if line:
            self._open[number] = lines
        else:
            self._open.pop(number, None)
        if lines.length:
            self._queued[number] = lines
        else:
            del self._tenants[tenant]
            self._queued.pop(number, None)

    def check_integrity(self) -> None:
        for tenant, lines in self._tenants.items():
            assert lines.length == len(list(lines)) > 0
            number = self._counters.number(tenant)
            assert (number in self._open) == (lines.next_line() is not None)
            assert self._queued[number] is lines
        assert len(self._queued) == len(self._tenants)
        assert self._length == sum(lines.length for lines in self._tenants.values())


def _place(sequence: Sequence) -> Place:
    return sequence.place
