"""One seed's load through the scheduler: arrivals of several tenants, versions that come and go, late and lost
adapters, aborts, disconnects, deadlines, a full queue, failing steps, steps without memory, restarts of the worker.

    PYTHONPATH=server:tests python -m support.simulation SEED DEPTH

runs one seed, to its error.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, deque
from dataclasses import dataclass, field

from softmux.errors import Overloaded, SoftmuxError
from softmux.scheduler.batch import Batch, StepOutput
from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.simulated_engine import Adapter, FakeEngine, Shelf, chain, choose, pick, rows_of
from support.simulated_registry import Tasks

EOS = 2
_BASE = ("sha256:base", "float32")
_TENANTS = "abc"
"""The last of them has the bare model alone."""
_ENDS = (
    "aborted", "disconnected", "displaced", "expired", "failed", "felled", "refused", "restarted", "shed",
)  # fmt: skip
"""How a request may end before its time."""
_DIGESTS = {"prompt": 5, "other": 5, "trained": 4, "long": 12, "lost": 3, "poisoned": 2}
"""Adapters by digest: how many learned tokens each has."""


def reference(request: Request) -> tuple[list[int], str]:
    """What a sequence must bring if nobody ends it: its tokens, and why it ends."""
    tokens, sampling = list(request.sequence.tokens), request.sequence.sampling
    values = chain(request.sequence.root, tokens)
    new: list[int] = []
    while len(new) < sampling.max_tokens:
        token = choose(request.sequence.root, values[-1], request.poisoned)
        if token < 0:
            return new, "abort"
        if token == EOS and not sampling.ignore_eos and len(new) >= sampling.min_tokens:
            return new, "stop"
        new.append(token)
        values.append(pick(values[-1], token))
    return new, "length"


@dataclass
class Request:
    sequence: Sequence
    poisoned: bool
    wanted: list[int] = field(default_factory=list)
    reason: str = ""
    got: list[int] = field(default_factory=list)
    ended: str | None = None
    cached: list[int] = field(default_factory=list)


class Simulation:
    """One seed's load, to its end: `run` raises AssertionError at the first thing that is wrong."""

    def __init__(self, seed: int, depth: int) -> None:
        self.draw = draw = random.Random(seed)
        self.depth = depth
        slots = draw.choice([40, 48, 64, 100, 300])
        self.max_rows = draw.choice([1, 2, 4, 8])
        self.budget = draw.choice([3, 6, 16, 64])
        self.adapters = [
            Adapter(
                RootKey(tenant, digest, *_BASE),
                learned=learned,
                trained=digest.startswith("trained"),
                delay=draw.randint(0, 6),
                fails=digest == "lost",
                poisoned=digest == "poisoned",
                delta=draw.random() < 0.5,
            )
            for tenant in ("a", "b")
            for digest, learned in _DIGESTS.items()
        ]
        for adapter in self.adapters:
            if adapter.trained:
                adapter.compiled = chain(adapter.key, [-1 - i for i in range(adapter.learned)])
        self.shelf = Shelf(self.adapters, delta_slots=draw.choice([1, 2, 20]), draw=draw)
        self.tasks = Tasks(draw, self.shelf, _BASE)
        self.slots, self.context = slots, draw.randint(36, min(slots, 60))
        self.group, self.max_waiting = draw.choice([1, 2, 8]), draw.choice([4, 64, 64, 64])
        self.weights = {tenant: draw.choice([1.0, 1.0, 0.5, 4.0]) for tenant in _TENANTS}
        self.abort_rate = draw.choice([0, 0, 0.03])
        self.failure_rate = draw.choice([0, 0, 0.02])
        self.shortage_rate = draw.choice([0, 0, 0.03])
        self.restart_rate = draw.choice([0, 0, 0, 0.01])
        self.change_rate = draw.choice([0, 0.05, 0.3])
        self.arrivals = sorted(draw.randint(0, 40) for _ in range(draw.randint(8, 36)))
        self.requests: list[Request] = []
        self.by_id: dict[str, Request] = {}
        self.flying: deque[tuple[Batch, StepOutput]] = deque()
        self.now = 0
        self.happened: Counter[str] = Counter()
        """Of what the seeds must bring about, how often it came."""
        self.start_worker()

    def start_worker(self) -> None:
        """A scheduler and an engine that know nothing yet."""
        self.scheduler = Scheduler(
            slots=self.slots,
            max_rows=self.max_rows,
            max_step_tokens=self.budget,
            context_length=self.context,
            eos=(EOS,),
            shelf=self.shelf,
            max_waiting=self.max_waiting,
            group=self.group,
        )
        self.engine = FakeEngine(self.scheduler, self.shelf, self.slots, self.max_rows)

    def _request(self, number: int) -> Request:
        draw = self.draw
        adapter = draw.choice([None, *self.adapters])
        if draw.random() < 0.5:
            adapter = self.tasks.resolve(draw.choice("ab")) or adapter
        root = adapter.key if adapter is not None else RootKey(draw.choice(_TENANTS), None, *_BASE)
        text = [[3, 4, 5, 6, 7, 8, 9, 10][i % 8] if draw.random() < 0.85 else draw.randrange(3, 11) for i in range(18)]
        text = text[: draw.randint(1, 18)]
        lead = [-1 - i for i in range(adapter.learned)] if adapter is not None else []
        tokens = lead + text
        if adapter is not None and not adapter.trained:
            if draw.random() < 0.2:  # a template: text, or learned tokens, in between
                cut = draw.randint(0, adapter.learned)
                tokens = lead[:cut] + text[: len(text) // 2] + lead[cut:] + text[len(text) // 2 :]
            elif draw.random() < 0.1:
                tokens = lead
        earlier = [r for r in self.requests if r.sequence.root == root]
        if earlier and draw.random() < 0.4:  # a chat goes on from what was answered
            before = draw.choice(earlier)
            tokens = [*before.sequence.tokens, *before.wanted, *text[:3]][: self.context - 1]
        longest = self.context - len(tokens)
        max_tokens = longest if draw.random() < 0.1 else min(longest, draw.randint(1, 12))
        sampling = SamplingParams(
            max_tokens=max_tokens,
            ignore_eos=draw.random() < 0.5,
            presence_penalty=0.1 if draw.random() < 0.1 else 0.0,
        )
        sequence = Sequence(
            id=str(number),
            client=draw.choice([b"x", b"y"]),
            root=root,
            prompt=tokens,
            sampling=sampling,
            arrival=float(self.now),
            deadline=float(self.now + draw.randint(1, 60)) if draw.random() < 0.1 else None,
            priority=draw.choice([0, 0, -1, 1, 10]),
            weight=self.weights[root.tenant],
        )
        request = Request(sequence, adapter is not None and adapter.poisoned)
        request.wanted, request.reason = reference(request)
        return request

    def run(self) -> None:
        limit = 400
        while self.arrivals or self.flying or self.scheduler.running or len(self.scheduler.waiting):
            while self.arrivals and self.arrivals[0] <= self.now:
                del self.arrivals[0]
                request = self._request(len(self.requests))
                limit += 4 * (len(request.sequence.tokens) + request.sequence.sampling.max_tokens)
                self._send(request)
            self._disturb()
            self._step()
            self.scheduler.check_integrity()
            self.now += 1
            assert self.now < limit, "sequences wait for ever"
        self._look_back()

    def _send(self, request: Request) -> None:
        self.requests.append(request)
        self.by_id[request.sequence.id] = request
        try:
            self.scheduler.add(request.sequence)
        except Overloaded:
            assert len(self.scheduler.waiting) >= self.max_waiting
            self._end(request.sequence, "refused")

    def _disturb(self) -> None:
        draw = self.draw
        for sequence in self.scheduler.expired(float(self.now)):
            self._end(sequence, "expired")
        if draw.random() < self.abort_rate:
            living = [s for s in self.scheduler.sequences() if s.id in self.by_id]
            if living:
                victim = draw.choice(living)
                self.scheduler.abort(victim.client, victim.id)
                self._end(victim, "aborted")
        if draw.random() < self.abort_rate / 3:
            client = draw.choice([b"x", b"y"])
            gone = [s for s in self.scheduler.sequences() if s.client == client]
            self.scheduler.abort_client(client)
            for sequence in gone:
                self._end(sequence, "disconnected")
        if draw.random() < 0.1:
            self.shelf.drop(draw, self.scheduler)
        if draw.random() < self.change_rate:
            self.tasks.change()
        if draw.random() < 0.05:
            self.scheduler.limit = None
        if draw.random() < self.restart_rate:
            self._restart()

    def _restart(self) -> None:
        """The worker dies: every request is told so, and nothing it held is there any more."""
        for request in self.requests:
            if request.ended is None:  # those put out of the queue, and not told yet, too
                self._end(request.sequence, "restarted")
        self.flying.clear()
        self.shelf.restart()
        self.start_worker()

    def _step(self) -> None:
        for adapter in self.shelf.arrivals():
            self.scheduler.adapter_arrived(adapter)
        eligible = [s for s in self.scheduler.running if self._may_decode(s)]
        limited = self.scheduler.limit is not None
        batch, failed = self.scheduler.next(float(self.now))
        for sequence, error in failed:
            self._hear_of_failure(sequence, error)
        assert batch.tokens <= max(self.budget, self.max_rows)
        assert not limited or batch.tokens <= (self.scheduler.limit or 0)
        rows = rows_of(batch)
        scheduled = {id(row.sequence) for row in rows}
        assert len(scheduled) == len(rows) == len(batch), "one sequence, two rows"
        if not limited and not batch.preempted and self.scheduler.cache.room:
            starved = [s.id for s in eligible if id(s) not in scheduled and s.row >= 0]
            assert not starved, "a decoding row waits though there is room"
        ran = len(batch) > 0 or bool(batch.loads)
        assert ran or self.scheduler.running or not self.scheduler.waiting.movable, "all rows are free, and some wait"
        self.happened["preempted"] += batch.preempted
        if ran and self.draw.random() < self.failure_rate:
            self._land(0)
            for sequence in self.scheduler.step_failed(batch):
                self._end(sequence, "felled")
            self.happened["step failed"] += 1
        elif ran and self.draw.random() < self.shortage_rate:
            self._run_short(batch)
        elif ran:
            self.flying.append((batch, self.engine.launch(batch)))
            self._land(self.depth)
        else:
            self._land(0)

    def _hear_of_failure(self, sequence: Sequence, error: SoftmuxError) -> None:
        if isinstance(error, Overloaded):
            assert sequence.first_scheduled is None, "who has begun is not put out of the queue"
            self._end(sequence, "displaced")
        else:
            adapter = self.shelf.adapters[sequence.root]
            assert adapter.fails or adapter.flaky
            self._end(sequence, "failed")

    def _run_short(self, batch: Batch) -> None:
        """There is no memory for the step: its work goes back, half of what waits is refused, steps are smaller."""
        self._land(0)
        self.scheduler.step_undone(batch)
        self.scheduler.limit = self.draw.randint(1, self.budget)
        for sequence in self.scheduler.shed((len(self.scheduler.waiting) + 1) // 2 if self.draw.random() < 0.3 else 0):
            self._end(sequence, "shed")
        self.happened["short of memory"] += 1

    @staticmethod
    def _may_decode(sequence: Sequence) -> bool:
        return (
            sequence.decoding
            and sequence.finished is None
            and sequence.generated + sequence.pending < sequence.sampling.max_tokens
            and not (sequence.pending and sequence.sampling.needs_history)
        )

    def _land(self, keep: int) -> None:
        while len(self.flying) > keep:
            for sequence, output in self.scheduler.update(*self.flying.popleft(), float(self.now)).each():
                request = self.by_id[sequence.id]
                assert request.ended is None, "news of a sequence that has ended"
                request.got.extend(output.tokens)
                if output.cached_tokens:
                    request.cached.append(output.cached_tokens)
                if output.finish_reason:
                    self._end(sequence, output.finish_reason)

    def _end(self, sequence: Sequence, reason: str) -> None:
        request = self.by_id[sequence.id]
        assert request.ended is None, f"{sequence.id} ends twice"
        request.ended = reason
        self.happened[reason] += 1

    def _look_back(self) -> None:
        for request in self.requests:
            if request.ended == request.reason:
                assert request.got == request.wanted
            else:
                assert request.ended in _ENDS
                assert request.got == request.wanted[: len(request.got)]
            assert len(request.cached) <= 1
            assert sum(request.cached) < len(request.sequence.tokens)
        scheduler = self.scheduler
        assert not list(scheduler.sequences())
        assert scheduler.cache.pool.free + scheduler.cache.tree.tokens == scheduler.cache.pool.capacity
        assert scheduler.cache.tree.evictable == scheduler.cache.tree.tokens
        assert all(adapter.holds == 0 for adapter in self.shelf.adapters.values())
        again = {v: n for v, n in self.engine.computed.items() if n > 1 + self.engine.dropped[v]}
        assert not again, "an adapter's prefix was computed again while it was cached"
        freed = scheduler.cache.tree.evict(scheduler.cache.tree.tokens)
        scheduler.cache.pool.give(freed)
        assert scheduler.cache.pool.free == scheduler.cache.pool.capacity, "something in the tree can never be evicted"
        scheduler.check_integrity()


if __name__ == "__main__":
    Simulation(int(sys.argv[1]), int(sys.argv[2])).run()
