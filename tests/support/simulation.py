"""One seed's load through the scheduler: arrivals, late and lost adapters, aborts, deadlines, failing steps."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from softmux.errors import SoftmuxError
from softmux.scheduler.batch import Batch, StepOutput
from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.simulated_engine import Adapter, FakeEngine, Shelf, chain, choose, pick, rows_of

EOS = 2
_BASE = ("sha256:base", "float32")
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
    arrives: int
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
        self.shelf = Shelf(self.adapters, delta_slots=draw.choice([1, 2, 20]))
        self.context = draw.randint(36, min(slots, 60))
        self.scheduler = Scheduler(
            slots=slots,
            max_rows=self.max_rows,
            max_step_tokens=self.budget,
            context_length=self.context,
            eos=(EOS,),
            shelf=self.shelf,
            group=draw.choice([1, 2, 8]),
        )
        self.engine = FakeEngine(self.scheduler, self.shelf, slots, self.max_rows)
        self.abort_rate = draw.choice([0, 0, 0.03])
        self.failure_rate = draw.choice([0, 0, 0.02])
        self.requests: list[Request] = []
        for number in range(draw.randint(8, 36)):
            self.requests.append(self._request(number))
        self.by_id = {request.sequence.id: request for request in self.requests}
        self.flying: deque[tuple[Batch, StepOutput]] = deque()
        self.now = 0
        self.step_failures = 0

    def _request(self, number: int) -> Request:
        draw = self.draw
        adapter = draw.choice([None, *self.adapters])
        root = adapter.key if adapter is not None else RootKey(draw.choice("ab"), None, *_BASE)
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
            arrival=0.0,
            deadline=float(draw.randint(1, 60)) if draw.random() < 0.1 else None,
        )
        request = Request(sequence, adapter is not None and adapter.poisoned, draw.randint(0, 40))
        request.wanted, request.reason = reference(request)
        return request

    def run(self) -> None:
        pending = deque(sorted(self.requests, key=lambda request: request.arrives))
        limit = 400 + 4 * sum(len(r.sequence.tokens) + r.sequence.sampling.max_tokens for r in self.requests)
        while pending or self.flying or self.scheduler.running or len(self.scheduler.waiting):
            while pending and pending[0].arrives <= self.now:
                self.scheduler.add(pending.popleft().sequence)
            self._disturb()
            self._step()
            self.scheduler.check_integrity()
            self.now += 1
            assert self.now < limit, "sequences wait for ever"
        self._look_back()

    def _disturb(self) -> None:
        for sequence in self.scheduler.expired(float(self.now)):
            self._end(sequence, "expired")
        if self.draw.random() < self.abort_rate:
            living = [s for s in self.scheduler.sequences() if s.id in self.by_id]
            if living:
                victim = self.draw.choice(living)
                self.scheduler.abort(victim.client, victim.id)
                self._end(victim, "aborted")
        if self.draw.random() < 0.1:
            self.shelf.drop(self.draw, self.scheduler)

    def _step(self) -> None:
        for adapter in self.shelf.arrivals():
            self.scheduler.adapter_arrived(adapter)
        eligible = [s for s in self.scheduler.running if self._may_decode(s)]
        batch, failed = self.scheduler.next(float(self.now))
        for sequence, error in failed:
            assert isinstance(error, SoftmuxError)
            assert sequence.root.digest == "lost"
            self._end(sequence, "failed")
        assert batch.tokens <= max(self.budget, self.max_rows)
        rows = rows_of(batch)
        scheduled = {id(row.sequence) for row in rows}
        assert len(scheduled) == len(rows) == len(batch), "one sequence, two rows"
        if not batch.preempted and self.scheduler.cache.pool.free + self.scheduler.cache.tree.evictable:
            starved = [s.id for s in eligible if id(s) not in scheduled and s.row >= 0]
            assert not starved, "a decoding row waits though there is room"
        if (len(batch) or batch.loads) and self.draw.random() < self.failure_rate:
            self._land(0)
            for sequence in self.scheduler.step_failed(batch):
                self._end(sequence, "felled")
            self.step_failures += 1
            return
        if len(batch) or batch.loads:
            self.flying.append((batch, self.engine.launch(batch)))
            self._land(self.depth)
        else:
            self._land(0)

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

    def _look_back(self) -> None:
        for request in self.requests:
            if request.ended == request.reason:
                assert request.got == request.wanted
            else:
                assert request.ended in ("aborted", "expired", "failed", "felled")
                assert request.got == request.wanted[: len(request.got)]
            assert len(request.cached) <= 1
            assert sum(request.cached) < len(request.sequence.tokens)
        scheduler = self.scheduler
        assert not list(scheduler.sequences())
        assert scheduler.cache.pool.free + scheduler.cache.tree.tokens == scheduler.cache.pool.capacity
        assert scheduler.cache.tree.evictable == scheduler.cache.tree.tokens
        assert all(adapter.holds == 0 for adapter in self.adapters)
        again = {v: n for v, n in self.engine.computed.items() if n > 1 + self.engine.dropped[v]}
        assert not again, "an adapter's prefix was computed again while it was cached"
        freed = scheduler.cache.tree.evict(scheduler.cache.tree.tokens)
        scheduler.cache.pool.give(freed)
        assert scheduler.cache.pool.free == scheduler.cache.pool.capacity, "something in the tree can never be evicted"
        scheduler.check_integrity()
