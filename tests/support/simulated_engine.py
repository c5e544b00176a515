"""A scheduler's surroundings without a model: adapter tiers that count steps, and an engine whose KV slots hold, for
each token, a name of the very prefix it was written for."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from softmux.errors import InternalError
from softmux.scheduler.batch import Batch, StepOutput
from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.shelf import Room

VOCABULARY = 12


def pick(*values: object) -> int:
    """A large number that depends on nothing but `values` (and not on the process's hash seed)."""
    return int.from_bytes(hashlib.blake2b(repr(values).encode(), digest_size=8).digest(), "big")


class Row(NamedTuple):
    """`count` tokens of a sequence from `start` on; `future`: the token is the one the step before is choosing."""

    sequence: Sequence
    start: int
    count: int
    samples: bool
    future: bool = False


def rows_of(batch: Batch) -> list[Row]:
    """A batch's rows one by one, its columns checked against the sequences they belong to."""
    rows = []
    for token, row, position, slot in batch.decodes.T.tolist():
        sequence = batch.table.sequences[row]
        assert sequence.slots[position] == slot
        if token != -1:
            assert sequence.tokens[position] == token, "a decoding row's input is not its own last token"
        rows.append(Row(sequence, position, 1, True, future=token == -1))
    for chunk in batch.chunks:
        assert chunk.sequence is batch.table.sequences[chunk.row]
        rows.append(Row(chunk.sequence, chunk.start, chunk.count, chunk.samples))
    assert [row.sequence.row for row in rows] == batch.rows.tolist()
    assert [row.start for row in rows] == batch.starts.tolist()
    assert [row.count for row in rows] == batch.counts.tolist()
    assert sum(row.count for row in rows) == batch.tokens
    assert len({row.sequence.root for row in rows if row.sequence.adapter is not None}) == batch.adapters
    return rows


@dataclass
class Adapter:
    """`learned` tokens; `trained`: they are a prefix, whose KV is copied and can never be computed."""

    key: RootKey
    learned: int
    trained: bool
    delay: int
    fails: bool = False
    flaky: bool = False
    """Its loading fails now and then."""
    poisoned: bool = False
    delta: bool = False
    """It needs a slot to run in."""
    compiled: list[int] | None = None
    """The KV values kept for its leading tokens."""
    holds: int = 0


class Shelf:
    """Adapter tiers in steps of the simulation; what nothing holds may be dropped from them at any time."""

    def __init__(self, adapters: list[Adapter], delta_slots: int = 0, draw: random.Random | None = None) -> None:
        self.delta_slots = delta_slots
        self.draw = draw or random.Random(0)
        self.adapters = {adapter.key: adapter for adapter in adapters}
        self.there: set[RootKey] = set()
        self.coming: dict[RootKey, int] = {}
        self.failed: set[RootKey] = set()

    def expect(self, adapter: RootKey) -> None:
        if adapter not in self.there and adapter not in self.failed:
            self.coming.setdefault(adapter, self.adapters[adapter].delay + 1)

    def ready(self, adapter: RootKey) -> bool:
        if adapter in self.failed:
            self.failed.discard(adapter)
            raise InternalError("the store has lost it")
        if adapter not in self.there:
            self.coming.setdefault(adapter, self.adapters[adapter].delay)
        return adapter in self.there

    def compiled(self, adapter: RootKey) -> int:
        assert adapter in self.there
        return len(self.adapters[adapter].compiled or ())

    def room(self, adapter: RootKey) -> Room:
        if not self.adapters[adapter].delta:
            return "none"
        if self.adapters[adapter].holds:
            return "held"
        return "free" if self.taken < self.delta_slots else "full"

    @property
    def taken(self) -> int:
        """Adapters that rows run on, of those that need a slot."""
        return sum(adapter.delta and adapter.holds > 0 for adapter in self.adapters.values())

    def hold(self, adapter: RootKey) -> int:
        assert adapter in self.there
        self.adapters[adapter].holds += 1
        assert self.taken <= self.delta_slots, "more adapters run than there are slots"
        return list(self.adapters).index(adapter) if self.adapters[adapter].delta else -1

    def release(self, adapter: RootKey) -> None:
        self.adapters[adapter].holds -= 1
        assert self.adapters[adapter].holds >= 0

    def arrivals(self) -> list[RootKey]:
        ended = [key for key, left in self.coming.items() if left <= 0]
        self.coming = {key: left - 1 for key, left in self.coming.items() if left > 0}
        for key in ended:
            fails = self.adapters[key].fails or (self.adapters[key].flaky and self.draw.random() < 0.5)
            (self.failed if fails else self.there).add(key)
        return ended

    def restart(self) -> None:
        """The process that kept them is gone, and all it held."""
        self.there.clear()
        self.coming.clear()
        self.failed.clear()
        for adapter in self.adapters.values():
            adapter.holds = 0
            if not adapter.trained:
                adapter.compiled = None

    def drop(self, draw: random.Random, keep: Scheduler) -> None:
        """Evicts one adapter that nothing holds, and with it, half of the time, the KV kept for it."""
        idle = sorted(key for key in self.there if not self.adapters[key].holds and not keep.waits_for(key))
        if idle:
            adapter = self.adapters[draw.choice(idle)]
            self.there.discard(adapter.key)
            if not adapter.trained and draw.random() < 0.5:
                adapter.compiled = None


def chain(root: RootKey, tokens: list[int]) -> list[int]:
    """What a slot must hold for each token: a name for (root, every token up to it)."""
    at, values = pick(root), []
    for token in tokens:
        at = pick(at, token)
        values.append(at)
    return values


def choose(root: RootKey, value: int, poisoned: bool) -> int:
    """The model: the token after a prefix, or −1 where its logits are not finite."""
    number = pick(root, value)
    if poisoned and number % 5 == 0:
        return -1
    return number // 8 % VOCABULARY


class FakeEngine:
    """Runs batches on values instead of tensors, in the order in which they are launched, as a device does."""

    def __init__(self, scheduler: Scheduler, shelf: Shelf, slots: int, max_rows: int) -> None:
        self.scheduler, self.shelf = scheduler, shelf
        self.kv: list[int | None] = [None] * slots
        self.table: list[list[int]] = [[] for _ in range(max_rows)]
        self.seats = [-1] * max_rows
        self.last = [0] * max_rows
        self.values: dict[int, list[int]] = {}
        self.computed: Counter[int] = Counter()
        self.dropped: Counter[int] = Counter()
        self.forwarded = 0
        evict, clear = scheduler.cache.tree.evict, scheduler.cache.tree.clear
        scheduler.cache.tree.evict = lambda count: self._drop(evict(count))  # type: ignore[method-assign]
        scheduler.cache.tree.clear = lambda: self._drop(clear())  # type: ignore[method-assign]

    def _drop(self, slots: list[int]) -> list[int]:
        self.dropped.update(value for slot in slots if (value := self.kv[slot]) is not None)
        return slots

    def launch(self, batch: Batch) -> StepOutput:
        for load in batch.loads:
            compiled = self.shelf.adapters[load.adapter].compiled
            assert compiled is not None
            for offset, slot in enumerate(load.slots):
                self.kv[slot] = compiled[load.start + offset]
        written: set[int] = set()
        rows = rows_of(batch)
        for row in rows:
            self._write(row, written)
        for row in rows:
            self._read(row.sequence, row.start + row.count)
        for save in batch.saves:
            leads = [r.sequence.lead for r in rows if r.sequence.root == save.adapter]
            assert len(save.slots) in leads, "an adapter's prefix is kept in part"
            kept = [self.kv[slot] for slot in save.slots]
            lead = chain(save.adapter, [-1 - i for i in range(len(kept))])
            assert kept == lead, "what is kept for an adapter is not its prefix's KV"
            adapter = self.shelf.adapters[save.adapter]
            adapter.compiled = adapter.compiled or lead
        tokens = []
        for row in rows:
            if row.samples:
                sequence = row.sequence
                if sequence.sampling.needs_history:
                    assert row.start + row.count == sequence.length, "penalties count a token not yet known"
                poisoned = sequence.adapter is not None and self.shelf.adapters[sequence.adapter].poisoned
                value = self.values[id(sequence)][row.start + row.count - 1]
                tokens.append(choose(sequence.root, value, poisoned))
                self.last[sequence.row] = max(tokens[-1], 0)
        assert batch.sampled.tolist() == [row.sequence.row for row in rows if row.samples]
        assert batch.lengths.tolist() == [row.start + row.count for row in rows if row.samples]
        return StepOutput(np.array(tokens, np.int64))

    def _write(self, row: Row, written: set[int]) -> None:
        sequence, start, count = row.sequence, row.start, row.count
        known = sequence.tokens[: start + count]
        if row.future:
            assert count == 1
            assert start == sequence.length, "a future token is the one after the last known"
            known = [*sequence.tokens, self.last[sequence.row]]
        assert start + count < sequence.prompt_length + sequence.sampling.max_tokens, "more is run than was asked for"
        values = self.values.setdefault(id(sequence), [])
        del values[start:]  # a token guessed from a row that was not finite may differ
        previous = values[-1] if values else pick(sequence.root)
        for token in known[len(values) :]:
            previous = pick(previous, token)
            values.append(previous)
        self._update_table(sequence, start + count)
        for position in range(start, start + count):
            slot = sequence.slots[position]
            assert slot not in written, "two rows of a step write one slot"
            written.add(slot)
            self.kv[slot] = values[position]
            if known[position] < 0:
                assert sequence.adapter is not None
                assert not self.shelf.adapters[sequence.adapter].trained, "a trained prefix can't be computed"
                if position < sequence.lead and position < sequence.length - 1:
                    self.computed[values[position]] += 1
        self.forwarded += count

    def _update_table(self, sequence: Sequence, end: int) -> None:
        """As the runner does: only what is new since the sequence's last step."""
        seat = int(self.scheduler.table.seats[sequence.row])
        if self.seats[sequence.row] != seat:
            self.seats[sequence.row] = seat
            self.table[sequence.row] = []
        table = self.table[sequence.row]
        table.extend(sequence.slots[len(table) : end])

    def _read(self, sequence: Sequence, end: int) -> None:
        table = self.table[sequence.row][:end]
        assert table == sequence.slots[:end]
        assert len(set(table)) == end, "a sequence names a slot twice"
        found = [self.kv[slot] for slot in table]
        assert found == self.values[id(sequence)][:end], f"{sequence.id} attends to what was written for another prefix"
