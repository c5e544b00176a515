"""Who may begin where adapters need a slot to run in (LoRAs do), and there are fewer slots than adapters."""

from __future__ import annotations

from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.queue import WaitingQueue
from softmux.scheduler.radix import RootKey
from softmux.scheduler.shelf import AdapterShelf

_PATIENCE = 64
"""Sequences of adapters with a slot that may go before a line that waits for one."""


class SlotTurns:
    """A line whose adapter finds no slot waits aside, and others pass: those that need none always, those whose adapter
    has a slot up to `_PATIENCE` of them, as long as their tenant has had no more than the one that waits. Then these
    wait, too, so that slots come free: for the tenant that has had least, and of its lines the first that came."""

    def __init__(self, shelf: AdapterShelf, waiting: WaitingQueue, counters: VirtualTokenCounters) -> None:
        self._shelf = shelf
        self._waiting = waiting
        self._counters = counters
        self._aside: dict[str, dict[RootKey, None]] = {}
        """By tenant, the lines that wait aside."""
        self._passed = 0

    def may_start(self, adapter: RootKey) -> bool:
        """Whether the next of this adapter's line may begin; if not, the line is set aside. Raises what makes it
        impossible for ever."""
        room = self._shelf.room(adapter)
        if room == "none":
            return True
        first = self._first() or adapter
        if adapter == first and room != "full":
            return True
        if room == "held" and self._passed < _PATIENCE and self._had(adapter.tenant) <= self._had(first.tenant):
            self._passed += 1
            return True
        self._aside.setdefault(adapter.tenant, {})[adapter] = None
        self._waiting.park(adapter)
        return False

    def leave(self, line: RootKey) -> None:
        """Its adapter is not there any more: it waits for that, and for a slot again when it comes."""
        if line in self._aside.get(line.tenant, ()):
            self._forget(line)

    def _first(self) -> RootKey | None:
        """Of the lines that wait aside the one that is next to have a slot. Lines that have emptied are forgotten."""
        while self._aside:
            tenant = min(self._aside, key=self._had)
            lines = self._aside[tenant]
            first = next(iter(lines))
            if first in self._waiting:
                return first
            self._forget(first)
        return None

    def _forget(self, line: RootKey) -> None:
        lines = self._aside[line.tenant]
        del lines[line]
        if not lines:
            del self._aside[line.tenant]
        self._passed = 0

    def _had(self, tenant: str) -> float:
        return self._counters.had_by(tenant)

    def resume(self) -> None:
        """Lets the line go on that is next to have a slot, if there is one for it now."""
        while (first := self._first()) is not None:
            room = self._shelf.room(first)
            if room == "full":
                return
            self._waiting.unpark(first)
            if room == "free":
                return  # it stays the first until it has begun
            self._forget(first)
