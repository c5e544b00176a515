"""Who waits, and who is next: first come, first served, with neighbours of the same root drawn in together."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator

from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence


class WaitingQueue:
    """One line for each root (tenant and adapter); lines are served by the arrival of their first.

    With `group` above one, up to that many of a line go in together before the next line's turn: rows of one adapter
    then share one cold prompt and one part of the tree. The oldest line is always next, so none starves.
    A parked line (its adapter is on its way to host memory) is passed over until `unpark`.
    """

    def __init__(self, group: int = 8) -> None:
        self.group = group
        self._lines: dict[RootKey, deque[Sequence]] = {}
        self._turns: list[tuple[int, RootKey]] = []
        self._parked: set[RootKey] = set()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __contains__(self, root: RootKey) -> bool:
        """Whether anyone waits in that line."""
        return root in self._lines

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line

    def push(self, sequence: Sequence) -> None:
        """Takes its place by `order`: a newcomer at the end, a preempted one before all that came after it."""
        line = self._lines.setdefault(sequence.root, deque())
        at = len(line)
        while at and line[at - 1].order > sequence.order:
            at -= 1
        line.insert(at, sequence)
        self._length += 1
        if at == 0:
            self._offer(sequence.root)

    def _offer(self, root: RootKey) -> None:
        line = self._lines.get(root)
        if line and root not in self._parked:
            heapq.heappush(self._turns, (line[0].order, root))

    def next_line(self) -> deque[Sequence] | None:
        """The line whose first has waited longest, or None. Stays in place: `pop` or `park` it, or call again."""
        while self._turns:
            order, root = self._turns[0]
            line = self._lines.get(root)
            if line and line[0].order == order and root not in self._parked:
                return line
            heapq.heappop(self._turns)
        return None

    def pop(self, root: RootKey) -> Sequence:
        line = self._lines[root]
        sequence = line.popleft()
        self._length -= 1
        if line:
            self._offer(root)
        else:
            del self._lines[root]
            self._parked.discard(root)
        return sequence

    def park(self, root: RootKey) -> None:
        self._parked.add(root)

    def unpark(self, root: RootKey) -> None:
        if root in self._parked:
            self._parked.discard(root)
            self._offer(root)

    def remove(self, sequence: Sequence) -> bool:
        line = self._lines.get(sequence.root)
        if line is None or sequence not in line:
            return False
        first = line[0] is sequence
        line.remove(sequence)
        self._length -= 1
        if not line:
            del self._lines[sequence.root]
            self._parked.discard(sequence.root)
        elif first:
            self._offer(sequence.root)
        return True
