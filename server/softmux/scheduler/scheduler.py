"""Who runs in the next step. No tensor is touched here (numpy at most), so whole days of load can be simulated.

`next()` builds a step's batch and books everything the step will write as if it were written; `update()` takes what
the step chose. Steps run in the order in which they were built, and every layer writes its keys and values before it
attends, so what `next()` put into the prefix tree may be used by other rows of the same step. `next()` may be called
once more before `update()` of the step before (the device then never waits for the host): a decoding row's input is
then the token that is still being chosen, −1 in `Batch.decodes`.

Rows that do nothing but decode are columns of a table (`rows.py`), and a step over them is a few array operations; a
sequence is looked at when it comes, ends, makes room or has something to tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

from softmux.errors import ContextTooLong, Overloaded, SoftmuxError
from softmux.scheduler.batch import Batch, Chunk, PrefixLoad, PrefixSave, StepOutput
from softmux.scheduler.cache import PrefixCache
from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.newcomers import Newcomers
from softmux.scheduler.news import News, PlainTokens, tell
from softmux.scheduler.queue import WaitingQueue
from softmux.scheduler.radix import RootKey
from softmux.scheduler.reading import Reading
from softmux.scheduler.roster import Roster
from softmux.scheduler.rows import Rows, RowTable, Step
from softmux.scheduler.seats import Seats
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.shelf import AdapterShelf
from softmux.types import FinishReason


class Scheduler:
    """Decodes first, then inputs under a token budget: for the tenant that has had least (`counters`), of a tenant's
    the chunks under way and then its newcomers, first come, first served.

    `eos` ends a sequence unless it says otherwise; `context_length` and the pool bound what is accepted at all.
    """

    def __init__(
        self,
        *,
        slots: int,
        max_rows: int,
        max_step_tokens: int,
        context_length: int,
        eos: Iterable[int],
        shelf: AdapterShelf,
        max_waiting: int = 4096,
        group: int = 8,
    ) -> None:
        self._context_length = min(context_length, slots)
        self.table = RowTable(max_rows, self._context_length + 1)  # a row that is read may fill all but the last
        self.cache = PrefixCache(slots, self.table)
        self.counters = VirtualTokenCounters()
        self.waiting = WaitingQueue(self.counters, group)
        self._seats = Seats(self.table, self.cache, self.waiting, shelf, self.counters)
        self._roster = Roster()
        self.max_step_tokens = max(max_step_tokens, max_rows)  # every decoding row fits every step
        self._max_waiting = max_waiting
        self._eos = tuple(eos)
        self._shelf = shelf
        self._newcomers = Newcomers(shelf, self.waiting, self.counters)
        self._unsaved: set[RootKey] = set()
        self._displaced: list[tuple[Sequence, SoftmuxError]] = []
        self.limit: int | None = None
        """Fewer tokens than ever a step may have, where memory is short; rows that do not fit into it wait."""
        self.prefix_queries = 0
        self.prefix_hits = 0

    @property
    def running(self) -> list[Sequence]:
        """The sequences that have a row, in the order in which they got it."""
        return self.table.running()

    @property
    def preemptions(self) -> int:
        """Sequences sent back to the queue so far, for want of room."""
        return self._seats.preemptions

    # --- arriving and leaving ----------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises `ContextTooLong`, `Overloaded` or `InternalError`, having changed nothing."""
        reading = sequence.reading
        if reading is not None:
            self._check_readable(sequence, reading)
        needed = sequence.prompt_length + (sequence.sampling.max_tokens if reading is None else 0)
        if needed > self._context_length:
            raise ContextTooLong(
                f"This model's maximum context length is {self._context_length} tokens here; "
                f"{sequence.prompt_length} input tokens (virtual tokens included) and max_tokens "
                f"{sequence.sampling.max_tokens} need {needed}: shorten the prompt or lower max_tokens",
                param="prompt",
            )
        full = len(self.waiting) >= self._max_waiting
        displaced = self._displaceable(sequence) if full else None
        if full and displaced is None:
            raise self._overloaded()
        self._roster.add(sequence)
        if displaced is not None:
            self._displaced.append((displaced, self._overloaded()))
            self._end(displaced, "abort")
        sequence.account = self.counters.enter(sequence.root.tenant, sequence.weight)
        self.waiting.push(sequence)
        if sequence.adapter is not None:
            self._shelf.expect(sequence.adapter)

    def _overloaded(self) -> Overloaded:
        return Overloaded(f"{len(self.waiting)} sequences are waiting already; retry later", retry_after=1.0)

    def _displaceable(self, sequence: Sequence) -> Sequence | None:
        """Who leaves a full queue for a newcomer: the last that has not begun of the tenant with most in it for its
        weight, where the newcomer's has less even with it."""
        most = self.counters.most_queued()
        mine = (self.waiting.waiting_of(sequence.root.tenant) + 1) / sequence.weight
        if mine >= self.counters.queued_share(most):
            return None
        last = self.waiting.last_of(most)
        return last if last is not None and last.root.tenant != sequence.root.tenant else None

    def _check_readable(self, sequence: Sequence, reading: Reading) -> None:
        most = min(self._context_length, self.max_step_tokens + reading.whole_from)
        if sequence.prompt_length > most:
            raise ContextTooLong(
                f"{sequence.prompt_length} input tokens (virtual tokens included) are read in one step, this server "
                f"takes {most}; shorten the input, or send `stride`",
                param="input",
            )

    def abort(self, client: bytes, sequence_id: str) -> None:
        """Ends a sequence wherever it is; unknown ones are ignored (it may just have ended)."""
        sequence = self._roster.find(client, sequence_id)
        if sequence is not None:
            self._end(sequence, "abort")

    def abort_client(self, client: bytes) -> None:
        for sequence in self._roster.of_client(client):
            self._end(sequence, "abort")

    def expired(self, now: float) -> list[Sequence]:
        """Ends and returns every sequence whose deadline has passed."""
        late = self._roster.late(now)
        for sequence in late:
            self._end(sequence, "abort")
        return late

    def adapter_arrived(self, adapter: RootKey) -> None:
        """Its line may move again: the adapter is in host memory, or has failed (`ready` will say so)."""
        self.waiting.unpark(adapter)

    def waits_for(self, adapter: RootKey) -> bool:
        """Whether a sequence waits to run on it."""
        return adapter in self.waiting

    def sequences(self) -> Iterable[Sequence]:
        return self._roster.all()

    # --- the step ----------------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Batch, list[tuple[Sequence, SoftmuxError]]]:
        """The next step's batch (maybe empty), and the sequences that have ended for want of their adapter, or of room
        in the queue."""
        batch = Batch(self.table)
        most = min(self.max_step_tokens, self.limit or self.max_step_tokens)
        self._decode(batch, most)
        failed, self._displaced = self._displaced, []
        if len(self.waiting) or self._seats.filling:
            self._bring_inputs(batch, most - len(batch), now, failed)
        batch.adapters = self.table.distinct_adapters(batch.rows)
        return batch, failed

    def _decode(self, batch: Batch, most: int) -> None:
        rows = self.table.ready()
        if len(rows) > most:
            rows = self._seats.ranked(rows)[:most]
        slots = self.cache.take(len(rows))
        batch.decodes = self._decode_ranked(rows, batch) if slots is None else self.table.decode(rows, slots)
        self.counters.charge_decodes(self.table.accounts, batch.decodes[1])

    def _decode_ranked(self, rows: Rows, batch: Batch) -> Step:
        """The pool has not room for all of `rows`: the first in rank go on, in the place of the last."""
        steps = [batch.decodes]
        for row in self._seats.ranked(rows).tolist() if len(rows) else ():
            if not self.table.seated[row]:
                continue  # it gave way to one before it
            sequence = self.table.sequences[row]
            slots = self._seats.take(1, sequence, batch)
            if slots is not None:
                steps.append(self.table.decode(np.array([row]), slots))
        return np.concatenate(steps, axis=1)

    def _chunk(self, sequence: Sequence, batch: Batch, budget: int) -> int:
        """Schedules the next part of a sequence's input, sharing what others have computed of it meanwhile."""
        if not self._adopt(sequence, batch):
            return 0
        start = sequence.computed
        wanted = self._portion(sequence, start, batch, budget)
        slots = self._seats.take(wanted, sequence, batch) if wanted else None
        if slots is None:
            return 0
        count, row = len(slots), sequence.row
        self.cache.grow(sequence, slots, share=not sequence.alone)
        last = self.table.chunk(row)
        if last:
            del self._seats.filling[sequence]
        batch.chunks.append(Chunk(sequence, row, start, count, samples=last))
        self.counters.charge(sequence.account, count, int(last and sequence.reading is None))
        adapter = sequence.adapter
        if adapter is not None and start < sequence.lead <= start + count and not sequence.alone:
            self._keep_prefix(adapter, self.table.slots[row, : sequence.lead].tolist(), batch)
        return count

    def _portion(self, sequence: Sequence, start: int, batch: Batch, budget: int) -> int:
        """How many of its tokens from `start` on a sequence brings to this step. 0: they come whole, and others have
        the room; as a step's first chunk they may be more than the decoding rows leave of the budget."""
        count = max(1, min(sequence.length - start, budget, self.cache.room))
        begin, end = sequence.whole
        if start >= end or start + count >= end:
            return count
        if start < begin:
            return min(count, begin - start)
        return 0 if batch.chunks else end - start

    def _keep_prefix(self, adapter: RootKey, slots: list[int], batch: Batch) -> None:
        if not self._shelf.compiled(adapter) and adapter not in self._unsaved:
            self._unsaved.add(adapter)
            batch.saves.append(PrefixSave(adapter, slots))

    def _adopt(self, sequence: Sequence, batch: Batch) -> bool:
        """Extends what a sequence shares by what the tree knows, and by its adapter's compiled prefix KV.

        False where there is such KV but no room for it now: a trained prefix can't be computed instead.
        """
        end = sequence.reusable  # one token at least is computed: its logits are needed
        start = self.cache.follow(sequence, end)
        adapter = sequence.adapter
        if adapter is None or start >= sequence.lead or sequence.shared < start:
            return True
        ready = min(self._shelf.compiled(adapter), sequence.lead, end)
        if ready <= start:
            return True
        taken = self._seats.take(ready - start, sequence, batch)
        if taken is None:
            return False
        self.cache.grow(sequence, taken)
        assert sequence.shared == ready, "followed to here a moment ago; what was left there since gave way for room"
        batch.loads.append(PrefixLoad(adapter, start, taken.tolist()))
        return True

    def _bring_inputs(self, batch: Batch, budget: int, now: float, failed: list[tuple[Sequence, SoftmuxError]]) -> None:
        """Spends the budget a chunk at a time, each time for the tenant that has had least by then."""
        under_way, room = self._seats.under_way(), True
        self._newcomers.begin()

        while budget:
            newcomers = room and bool(self.table.free) and len(self.waiting) > 0
            if newcomers:
                self._newcomers.resume()
            tenant = self.counters.least(under_way, waiting=newcomers)
            if tenant is None:
                return
            if tenant in under_way:
                used = self._go_on(under_way, tenant, batch, budget)
            else:
                newcomer = self._newcomer(tenant, failed)
                used = self._start(newcomer, batch, budget, now) if newcomer is not None else 0
                room = newcomer is None or used > 0
            budget = max(0, budget - used)

    def _go_on(self, under_way: dict[int, deque[Sequence]], tenant: int, batch: Batch, budget: int) -> int:
        sequence = under_way[tenant].popleft()
        if not under_way[tenant]:
            del under_way[tenant]
        return self._chunk(sequence, batch, budget) if sequence in self._seats.filling else 0  # or it gave way

    def _newcomer(self, tenant: int, failed: list[tuple[Sequence, SoftmuxError]]) -> Sequence | None:
        """A waiting tenant's next; None where it had to be put aside, or ended for want of its adapter."""
        try:
            line = self._newcomers.next_line(tenant)
        except SoftmuxError as error:
            for sequence in list(self.waiting.next_line(tenant) or ()):
                self._end(sequence, "abort")
                failed.append((sequence, error))
            return None
        return line[0] if line else None

    def _start(self, sequence: Sequence, batch: Batch, budget: int, now: float) -> int:
        """Moves the first of a line into the step; 0 where the pool has no room for its input yet."""
        length = sequence.length
        node, slots = self.cache.find(sequence, sequence.reusable)
        if length - len(slots) + 1 > self.cache.room and self.table.taken:
            self.cache.let_go(node)
            return 0
        self.waiting.pop(sequence.root)
        self._seats.start(sequence, node, slots)
        used = self._chunk(sequence, batch, budget)
        if sequence.cached < 0:
            sequence.cached = sequence.computed - used
            self.prefix_queries += length
            self.prefix_hits += sequence.cached
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
        return used

    # --- after the step ----------------------------------------------------------------------------------------------

    def update(self, batch: Batch, output: StepOutput, now: float) -> News:
        """Books what a step chose. Returns the news by sequence; a failed row's sequence has `finished` "abort" and
        a token of -1 was its output: the caller tells its client."""
        table, rows, sampled = self.table, batch.rows, batch.sampled
        table.land(rows, sampled)
        said = table.say(sampled, output.tokens, self._eos)
        for save in batch.saves:
            self._unsaved.discard(save.adapter)
        special = said.special
        if output.logprobs:
            special[list(output.logprobs)] = True
        ended = table.ended[rows]
        if not special.any() and not ended.any():
            return News([], PlainTokens.of(table, sampled, output.tokens))
        open_ = ~table.ended[sampled]
        plain = open_ & ~special
        news = News([], PlainTokens.of(table, sampled[plain], output.tokens[plain]))
        for row in rows[ended & (table.flights[rows] == 0)].tolist():
            self._seats.retire(table.sequences[row])
        for place in np.flatnonzero(open_ & special).tolist():
            sequence: Sequence = table.sequences[sampled[place]]
            token, stopped = int(output.tokens[place]), bool(said.stops[place])
            told, reason = tell(
                sequence, token, stopped=stopped, now=now,
                logprobs=output.logprobs.get(place), scores=output.scores.get(place, b""),
            )  # fmt: skip
            news.outputs.append((sequence, told))
            if reason:
                self._end(sequence, reason)
        return news

    def step_failed(self, batch: Batch) -> list[Sequence]:
        """A step raised: what it was to write is unknown. Everything cached is forgotten, every running sequence but
        the batch's own goes back to the queue, and those of the batch are returned, ended. The step before it has
        been booked by `update`; a sequence of the batch that this ended, or a client, is not ended again."""
        felled = [sequence for sequence in self.table.sequences[batch.rows].tolist() if not sequence.finished]
        self.table.land(batch.rows, batch.sampled)
        for sequence in felled:
            self._end(sequence, "abort")
        self._forget()
        return felled

    def step_undone(self, batch: Batch) -> None:
        """As `step_failed`, but those of the batch go back to the queue, too: they lose no more than work."""
        self.table.land(batch.rows, batch.sampled)
        self._forget()

    def _forget(self) -> None:
        self._seats.clear()
        self._unsaved.clear()

    def shed(self, count: int) -> list[Sequence]:
        """Ends and returns the `count` waiting sequences that came last."""
        newest = sorted(self.waiting, key=lambda sequence: sequence.order)[-count:] if count else []
        for sequence in newest:
            self._end(sequence, "abort")
        return newest

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """The sequence is over, wherever it is."""
        sequence.finished = reason
        self._roster.drop(sequence)
        if sequence.row < 0:
            self.waiting.remove(sequence)
        else:
            self._seats.end(sequence)
        self.counters.leave(sequence.root.tenant)

    def check_integrity(self) -> None:
        """Every slot, row and reference is accounted for; tests call it after every scenario."""
        self._seats.check_integrity()
        self.waiting.check_integrity()
        self.counters.check_integrity(sequence.root.tenant for sequence in self._roster.all())
        assert len(self._roster) == len(self.waiting) + sum(not s.finished for s in self.running)
