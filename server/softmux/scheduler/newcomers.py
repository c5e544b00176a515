"""Which of a tenant's lines brings a step its next newcomer: neighbours of one adapter together, where it is there."""

from __future__ import annotations

from dataclasses import dataclass

from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.queue import Line, WaitingQueue
from softmux.scheduler.radix import RootKey
from softmux.scheduler.shelf import AdapterShelf
from softmux.scheduler.turns import SlotTurns


@dataclass(slots=True)
class _Group:
    """A tenant's sequences of one root and priority that go in together: as many as are `left`."""

    root: RootKey
    priority: int
    left: int


class Newcomers:
    """`begin` a step, then ask for `next_line` after `resume`, again and again. A group of a tenant's stays together
    over the turns of other tenants between, and ends with the step."""

    def __init__(self, shelf: AdapterShelf, waiting: WaitingQueue, counters: VirtualTokenCounters) -> None:
        self._shelf = shelf
        self._waiting = waiting
        self._slots = SlotTurns(shelf, waiting, counters)
        self._groups: dict[int, _Group] = {}

    def begin(self) -> None:
        self._groups.clear()

    def resume(self) -> None:
        """Lines that waited for a slot go on where there is one."""
        self._slots.resume()

    def next_line(self, tenant: int) -> Line | None:
        """The line of a waiting tenant whose first may start; None where the tenant's next had to be put aside. Raises
        what makes it impossible for `waiting.next_line(tenant)` ever to run."""
        group = self._groups.get(tenant)
        if group is not None and group.left:
            line = self._waiting.line(group.root)
            if line and line[0].priority == group.priority:
                group.left -= 1
                return line
        line = self._waiting.next_line(tenant)
        assert line is not None, "only a tenant that waits is asked"
        adapter = line[0].adapter
        if adapter is not None and not self._shelf.ready(adapter):
            self._waiting.park(adapter)
            self._slots.leave(adapter)  # or it would be let go on, and put aside again, for ever
            return None
        if adapter is not None and not self._slots.may_start(adapter):
            return None
        self._groups[tenant] = _Group(line[0].root, line[0].priority, self._waiting.group - 1)
        return line
