"""Who runs in the next step. Pure Python: no tensor is touched here, so whole days of load can be simulated.

`next()` builds a step's batch and books everything the step will write as if it were written; `update()` takes what
the step chose. Steps run in the order in which they were built, and every layer writes its keys and values before it
attends, so what `next()` put into the prefix tree may be used by other rows of the same step. `next()` may be called
once more before `update()` of the step before (the device then never waits for the host): a decoding row's input is
then the token that is still being chosen (`Row.future`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Protocol

from softmux.errors import ContextTooLong, InternalError, Overloaded, SoftmuxError
from softmux.scheduler.batch import Batch, PrefixLoad, PrefixSave, Row, StepOutput
from softmux.scheduler.cache import PrefixCache
from softmux.scheduler.queue import WaitingQueue
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import FinishReason, Output


class AdapterShelf(Protocol):
    """What the scheduler needs to know of the adapter tiers. Implemented by `softmux.engine.tiers.AdapterTiers`."""

    def expect(self, adapter: RootKey) -> None:
        """A sequence that runs on it has been queued: its parts may be brought to host memory meanwhile."""

    def ready(self, adapter: RootKey) -> bool:
        """Whether its parts are in host memory; if not, their loading begins. Raises what made loading fail."""

    def compiled(self, adapter: RootKey) -> int:
        """How many leading tokens' KV can be copied into slots instead of being computed. 0: none."""

    def hold(self, adapter: RootKey) -> None:
        """Keep it in host memory until `release`: a sequence runs on it."""

    def release(self, adapter: RootKey) -> None: ...


class Scheduler:
    """First come, first served under a token budget; decodes first, then prefill chunks, then newcomers.

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
        self.cache = PrefixCache(slots)
        self.waiting = WaitingQueue(group)
        self.running: list[Sequence] = []
        self._by_id: dict[tuple[bytes, str], Sequence] = {}
        self._dated: set[Sequence] = set()
        self._draining: list[Sequence] = []
        self._free_rows = list(range(max_rows - 1, -1, -1))
        self._inflight: dict[int, int] = {}
        self._order = itertools.count()
        self._max_step_tokens = max(max_step_tokens, max_rows)  # every decoding row fits every step
        self._context_length = min(context_length, slots)
        self._max_waiting = max_waiting
        self._eos = frozenset(eos)
        self._shelf = shelf
        self._unsaved: set[RootKey] = set()
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0

    # --- arriving and leaving ----------------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises `ContextTooLong` or `Overloaded`, and then has changed nothing."""
        needed = sequence.prompt_length + sequence.sampling.max_tokens
        if needed > self._context_length:
            raise ContextTooLong(
                f"{sequence.prompt_length} input tokens (virtual tokens included) and max_tokens "
                f"{sequence.sampling.max_tokens} need {needed} positions, this server has {self._context_length}; "
                "shorten the prompt or lower max_tokens",
                param="prompt",
            )
        if len(self.waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self.waiting)} sequences are waiting already; retry later", retry_after=1.0)
        key = (sequence.client, sequence.id)
        if key in self._by_id:
            raise InternalError(f"sequence {sequence.id} is already running")
        sequence.order = next(self._order)
        self._by_id[key] = sequence
        if sequence.deadline is not None:
            self._dated.add(sequence)
        self.waiting.push(sequence)
        if sequence.adapter is not None:
            self._shelf.expect(sequence.adapter)

    def abort(self, client: bytes, sequence_id: str) -> None:
        """Ends a sequence wherever it is; unknown ones are ignored (it may just have ended)."""
        sequence = self._by_id.get((client, sequence_id))
        if sequence is not None:
            self._end(sequence, "abort")

    def abort_client(self, client: bytes) -> None:
        for owner, sequence_id in [key for key in self._by_id if key[0] == client]:
            self.abort(owner, sequence_id)

    def expired(self, now: float) -> list[Sequence]:
        """Ends and returns every sequence whose deadline has passed."""
        late = [s for s in self._dated if s.deadline is not None and s.deadline <= now]
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
        return self._by_id.values()

    # --- the step ----------------------------------------------------------------------------------------------------

    def next(self, now: float) -> tuple[Batch, list[tuple[Sequence, SoftmuxError]]]:
        """The next step's batch (maybe empty), and the sequences that can't run because their adapter can't be had."""
        batch = Batch()
        budget = self._max_step_tokens
        for sequence in [s for s in self.running if s.decoding]:
            if budget == 0:
                break
            if sequence.row >= 0 and not sequence.finished:
                budget -= self._decode(sequence, batch)
        for sequence in [s for s in self.running if not s.decoding]:
            if budget == 0:
                break
            if sequence.row >= 0 and not sequence.finished:
                budget -= self._chunk(sequence, batch, budget)
        failed = self._admit(batch, budget, now)
        for row in batch.rows:
            self._inflight[id(row.sequence)] = self._inflight.get(id(row.sequence), 0) + 1
        return batch, failed

    def _decode(self, sequence: Sequence, batch: Batch) -> int:
        if sequence.generated + sequence.pending >= sequence.sampling.max_tokens:
            return 0
        if sequence.pending and sequence.sampling.needs_history:
            return 0  # its penalties count the token that is still being chosen
        slots = self._take(1, sequence, batch)
        if slots is None:
            return 0
        future = sequence.computed >= len(sequence.tokens)
        batch.rows.append(Row(sequence, sequence.computed, 1, samples=True, future=future))
        self.cache.grow(sequence, slots, owned=True)
        sequence.pending += 1
        return 1

    def _chunk(self, sequence: Sequence, batch: Batch, budget: int) -> int:
        """Schedules the next part of a sequence's input, sharing what others have computed of it meanwhile."""
        if not self._adopt(sequence, batch):
            return 0
        left = len(sequence.tokens) - sequence.computed
        slots = self._take(max(1, min(left, budget, self.cache.room)), sequence, batch)
        if slots is None:
            return 0
        start, count = sequence.computed, len(slots)
        self.cache.grow(sequence, slots)
        last = sequence.computed == len(sequence.tokens)
        batch.rows.append(Row(sequence, start, count, samples=last))
        sequence.pending += last
        adapter = sequence.adapter
        if adapter is not None and start < sequence.lead <= sequence.computed:
            self._keep_prefix(adapter, sequence.slots[: sequence.lead], batch)
        return count

    def _keep_prefix(self, adapter: RootKey, slots: list[int], batch: Batch) -> None:
        if not self._shelf.compiled(adapter) and adapter not in self._unsaved:
            self._unsaved.add(adapter)
            batch.saves.append(PrefixSave(adapter, slots))

    def _adopt(self, sequence: Sequence, batch: Batch) -> bool:
        """Extends what a sequence shares by what the tree knows, and by its adapter's compiled prefix KV.

        False where there is such KV but no room for it now: a trained prefix can't be computed instead.
        """
        end = len(sequence.tokens) - 1  # one token at least is computed: its logits are needed
        self.cache.follow(sequence, end)
        adapter, start = sequence.adapter, sequence.computed
        if adapter is None or start >= sequence.lead or sequence.shared < start:
            return True
        ready = min(self._shelf.compiled(adapter), sequence.lead, end)
        if ready <= start:
            return True
        taken = self._take(ready - start, sequence, batch)
        if taken is None:
            return False
        self.cache.grow(sequence, taken)
        assert sequence.shared == ready, "followed to here a moment ago; what was left there since gave way for room"
        batch.loads.append(PrefixLoad(adapter, start, taken))
        return True

    def _admit(self, batch: Batch, budget: int, now: float) -> list[tuple[Sequence, SoftmuxError]]:
        failed: list[tuple[Sequence, SoftmuxError]] = []
        while budget and self._free_rows:
            line = self.waiting.next_line()
            if line is None:
                break
            adapter = line[0].adapter
            try:
                if adapter is not None and not self._shelf.ready(adapter):
                    self.waiting.park(adapter)
                    continue
            except SoftmuxError as error:
                for sequence in list(line):
                    self._end(sequence, "abort")
                    failed.append((sequence, error))
                continue
            for _ in range(min(self.waiting.group, len(line))):
                if not budget or not self._free_rows:
                    break
                used = self._start(line[0], batch, budget, now)
                if not used:
                    return failed
                budget -= used
        return failed

    def _start(self, sequence: Sequence, batch: Batch, budget: int, now: float) -> int:
        """Moves the first of a line into the step; 0 where the pool has no room for its input yet."""
        self.cache.enter(sequence)
        self.cache.follow(sequence, len(sequence.tokens) - 1)
        wanted = len(sequence.tokens) - sequence.computed + 1
        if wanted > self.cache.room and (self.running or batch.rows):
            self.cache.leave(sequence)
            return 0
        self.waiting.pop(sequence.root)
        sequence.row = self._free_rows.pop()
        sequence.admissions += 1
        if sequence.adapter is not None:
            self._shelf.hold(sequence.adapter)
        self.running.append(sequence)
        used = self._chunk(sequence, batch, budget)
        if sequence.cached < 0:
            sequence.cached = sequence.computed - used
            self.prefix_queries += len(sequence.tokens)
            self.prefix_hits += sequence.cached
        if sequence.first_scheduled is None:
            sequence.first_scheduled = now
        return used

    # --- room --------------------------------------------------------------------------------------------------------

    def _take(self, count: int, sequence: Sequence, batch: Batch) -> list[int] | None:
        """`count` slots: free ones, then the cache's least recently used, then those of whoever came after."""
        while (slots := self.cache.take(count)) is None:
            if not self._preempt_after(sequence, batch):
                return None
        return slots

    def _preempt_after(self, sequence: Sequence, batch: Batch) -> bool:
        """Sends the latest comer after `sequence` back to the queue; the tree keeps what it computed, while it can."""
        busy = {id(row.sequence) for row in batch.rows}
        victims = [
            s
            for s in self.running
            if s.order > sequence.order and id(s) not in busy and not self._inflight.get(id(s)) and s.row >= 0
        ]
        if not victims:
            return False
        victim = max(victims, key=lambda s: s.order)
        self._retire(victim)
        victim.preemptions += 1
        self.preemptions += 1
        batch.preempted += 1
        self.waiting.push(victim)
        return True

    # --- after the step ----------------------------------------------------------------------------------------------

    def update(self, batch: Batch, output: StepOutput, now: float) -> list[tuple[Sequence, Output]]:
        """Books what a step chose. Returns the news by sequence; a failed row's sequence has `finished` "abort" and
        a token of -1 was its output: the caller tells its client."""
        news: list[tuple[Sequence, Output]] = []
        chosen = zip(output.tokens, output.logprobs, strict=True)
        for row in batch.rows:
            sequence = row.sequence
            self._landed(sequence)
            if not row.samples:
                continue
            token, logprobs = next(chosen)
            sequence.pending -= 1
            if sequence.finished:
                continue
            if token < 0:
                self._end(sequence, "abort")
                news.append((sequence, Output(id=sequence.id, finish_reason="abort")))
                continue
            reason = self._append(sequence, token)
            stopped = reason == "stop"
            first = sequence.generated == (0 if stopped else 1)
            news.append(
                (
                    sequence,
                    Output(
                        id=sequence.id,
                        tokens=() if stopped else (token,),
                        finish_reason=reason,
                        cached_tokens=sequence.cached if first else 0,
                        queue_seconds=(sequence.first_scheduled or now) - sequence.arrival if first else 0.0,
                        logprobs=(logprobs,) if logprobs is not None and not stopped else (),
                    ),
                )
            )
            if reason:
                self._end(sequence, reason)
        for save in batch.saves:
            self._unsaved.discard(save.adapter)
        return news

    def _append(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling = sequence.sampling
        if token in self._eos and not sampling.ignore_eos and sequence.generated >= sampling.min_tokens:
            return "stop"
        sequence.tokens.append(token)
        return "length" if sequence.generated >= sampling.max_tokens else None

    def step_failed(self, batch: Batch) -> list[Sequence]:
        """A step raised: what it was to write is unknown. Everything cached is forgotten, every running sequence but
        the batch's own goes back to the queue, and those of the batch are returned, ended. The step before it has
        been booked by `update`; a sequence of the batch that this ended, or a client, is not ended again."""
        for row in batch.rows:
            self._landed(row.sequence)
            row.sequence.pending = 0
        felled = [row.sequence for row in batch.rows if not row.sequence.finished]
        for sequence in felled:
            self._end(sequence, "abort")
        for sequence in list(self.running):
            self._retire(sequence, keep=False)
            self.waiting.push(sequence)
        self.cache.clear()
        self._unsaved.clear()
        return felled

    def _landed(self, sequence: Sequence) -> None:
        flights = self._inflight[id(sequence)] - 1
        if flights:
            self._inflight[id(sequence)] = flights
            return
        del self._inflight[id(sequence)]
        if sequence in self._draining:
            self._draining.remove(sequence)
            self._retire(sequence)

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        """The sequence is over. Its slots are given back once no step in flight writes to them."""
        sequence.finished = reason
        del self._by_id[sequence.client, sequence.id]
        self._dated.discard(sequence)
        if self.waiting.remove(sequence):
            return
        if self._inflight.get(id(sequence)):
            self._draining.append(sequence)
        else:
            self._retire(sequence)

    def _retire(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Takes a sequence out of the running ones, its computed tokens into the tree (`keep`), its row back."""
        self.running.remove(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = -1
        if sequence.adapter is not None:
            self._shelf.release(sequence.adapter)
        self.cache.leave(sequence, keep=keep)

    def check_integrity(self) -> None:
        """Every slot, row and reference is accounted for; tests call it after every scenario."""
        self.cache.check_integrity(self.running)
        rows = [s.row for s in self.running]
        assert len(set(rows)) == len(rows)
        assert not set(rows) & set(self._free_rows)
