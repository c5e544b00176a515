"""The running sequences: who has a row, who is still bringing its input, and who gives way when room is short."""

from __future__ import annotations

from collections import deque

import numpy as np

from softmux.scheduler.batch import Batch
from softmux.scheduler.cache import PrefixCache
from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.queue import WaitingQueue
from softmux.scheduler.radix import Node
from softmux.scheduler.rows import Rows, RowTable
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.shelf import AdapterShelf
from softmux.scheduler.slots import Slots


class Seats:
    """Puts sequences into rows of the table and onto the prefix cache, and takes them out of both.

    A sequence that ends while a step in flight writes to its slots drains: it keeps row and slots until it has landed.
    """

    def __init__(
        self,
        table: RowTable,
        cache: PrefixCache,
        waiting: WaitingQueue,
        shelf: AdapterShelf,
        counters: VirtualTokenCounters,
    ) -> None:
        self._table = table
        self._counters = counters
        self._cache = cache
        self._waiting = waiting
        self._shelf = shelf
        self.filling: dict[Sequence, None] = {}
        """Those whose input has not been scheduled whole, in the order of their coming."""
        self.preemptions = 0

    def start(self, sequence: Sequence, node: Node, slots: list[int]) -> None:
        """Gives a row to a sequence for which `PrefixCache.find` has found its place."""
        delta = self._shelf.hold(sequence.adapter) if sequence.adapter is not None else -1
        self._table.seat(sequence, delta)
        self._cache.enter(sequence, node, slots)
        self.filling[sequence] = None

    def under_way(self) -> dict[int, deque[Sequence]]:
        """`filling` by tenant's number; of a tenant's the higher priority first, then in the order of their coming."""
        found: dict[int, deque[Sequence]] = {}
        for sequence in sorted(self.filling, key=lambda one: -one.priority) if self.filling else ():
            found.setdefault(sequence.account, deque()).append(sequence)
        return found

    def ranked(self, rows: Rows) -> Rows:
        """`rows` by who goes before whom where room is short: tenants by what they have had, each one's rows by place.

        The oldest of all that run goes before everyone, so that something comes to its end whatever the counters do.
        """
        table = self._table
        ranked = rows[np.lexsort((table.orders[rows], table.places[rows], self._counters.had[table.accounts[rows]]))]
        oldest = table.oldest()
        return np.concatenate([ranked[ranked == oldest], ranked[ranked != oldest]])

    def take(self, count: int, sequence: Sequence, batch: Batch) -> Slots | None:
        """`count` slots: free ones, then what the cache can spare, then those of who ranks behind."""
        while (slots := self._cache.take(count)) is None:
            if not self._preempt_behind(sequence, batch):
                return None
        return slots

    def _preempt_behind(self, sequence: Sequence, batch: Batch) -> bool:
        """Sends the last in rank behind `sequence` that no step is writing for, this one included, back to the queue:
        the latest comer of the tenant that has had most. The tree keeps what it computed, while it can."""
        table = self._table
        idle = table.seated & (table.flights == 0)
        idle[sequence.row] = True
        last = self.ranked(np.flatnonzero(idle))[-1]
        if last == sequence.row:
            return False
        victim: Sequence = table.sequences[last]
        self.retire(victim)
        victim.preemptions += 1
        self.preemptions += 1
        batch.preempted += 1
        self._waiting.push(victim)
        return True

    def end(self, sequence: Sequence) -> None:
        """Takes out a sequence that is over, once no step in flight writes to its slots."""
        row = sequence.row
        if self._table.flights[row]:
            self._table.ended[row] = True
            self._table.decodes[row] = False
            self.filling.pop(sequence, None)
        else:
            self.retire(sequence)

    def retire(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence out, its computed tokens into the tree (`keep`), its row back."""
        self.filling.pop(sequence, None)
        if sequence.adapter is not None:
            self._shelf.release(sequence.adapter)
        self._cache.leave(sequence, keep=keep and not sequence.alone)
        self._table.unseat(sequence)

    def clear(self) -> None:
        """No step is in flight, and what the last one wrote is unknown: everyone goes back to the queue, everything
        cached is forgotten."""
        for sequence in self._table.running():
            self.retire(sequence, keep=False)
            if not sequence.finished:
                self._waiting.push(sequence)
        self._cache.clear()

    def check_integrity(self) -> None:
        self._table.check_integrity()
        self._cache.check_integrity(self._table.running())
        assert all(sequence.row >= 0 and not sequence.decoding for sequence in self.filling)
