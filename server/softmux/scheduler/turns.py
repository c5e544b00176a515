"""Who may begin where adapters need a slot to run in (LoRAs do), and there are fewer slots than adapters."""

from __future__ import annotations

from softmux.scheduler.queue import WaitingQueue
from softmux.scheduler.radix import RootKey
from softmux.scheduler.shelf import AdapterShelf

_PATIENCE = 64
"""Sequences of adapters with a slot that may go before a line that waits for one."""


class SlotTurns:
    """A line whose adapter finds no slot waits aside, and others pass: those that need none always, those whose adapter
    has a slot up to `_PATIENCE` of them. Then these wait, too, so that slots come free; first come, first served."""

    def __init__(self, shelf: AdapterShelf, waiting: WaitingQueue) -> None:
        self._shelf = shelf
        self._waiting = waiting
        self._aside: dict[RootKey, None] = {}
        self._passed = 0

    def may_start(self, adapter: RootKey) -> bool:
        """Whether the next of this adapter's line may begin; if not, the line is set aside. Raises what makes it
        impossible for ever."""
        room = self._shelf.room(adapter)
        first = next(iter(self._aside), adapter)
        if room == "none" or (adapter == first and room != "full"):
            return True
        if room == "held" and self._passed < _PATIENCE:
            self._passed += 1
            return True
        self._aside[adapter] = None
        self._waiting.park(adapter)
        return False

    def resume(self) -> None:
        """Lets the line go on that was set aside longest, if there is a slot for it now."""
        while self._aside:
            first = next(iter(self._aside))
            waits = first in self._waiting
            room = self._shelf.room(first) if waits else "none"
            if room == "full":
                return
            self._waiting.unpark(first)
            if waits and room == "free":
                return  # it stays the first until it has begun
            del self._aside[first]
            self._passed = 0
