"""How long a newcomer would wait, and whom that refuses: against a simulated engine, whose truth is known."""

from __future__ import annotations

import heapq
import random
import time
from types import SimpleNamespace
from typing import Any

import pytest

from softmux.api.backlog import Backlog
from softmux.cost import cost
from softmux.errors import DeadlineExceeded, Overloaded
from softmux.settings import Settings
from softmux.telemetry.exposition import Metrics
from softmux.worker.messages import Stats
from softmux.worker.throughput import Throughput


def gauges(waiting: float = 0.0, rate: float = 0.0, running: float = 0.0) -> Stats:
    return Stats(
        counters={},
        gauges={"queue_cost": waiting, "queue_cost_per_second": rate, "num_requests_running": running},
        queues={"a": (waiting, 1.0)} if waiting else {},
    )


def backlog(stats: Stats | None, processes: int = 1, **settings: Any) -> Backlog:
    worker: Any = SimpleNamespace(stats=stats, up=1)
    return Backlog(Settings(max_rows=10, **settings), worker, Metrics(lambda: None), processes)


def test_nothing_known_and_room_mean_no_wait() -> None:
    assert backlog(None).wait_seconds("a") == 0
    assert backlog(gauges(waiting=1e6)).wait_seconds("a") == 0  # no rate has been measured yet
    there_is_room = backlog(gauges(rate=10, running=4))
    there_is_room.submitted("a", 5, 500)
    assert there_is_room.wait_seconds("a") == 0
    there_is_room.check("a", 100, time.monotonic() + 0.5)


def test_what_was_sent_since_the_worker_spoke_counts_until_it_speaks_again() -> None:
    told = backlog(gauges(rate=100, running=6))
    told.submitted("a", 8, 800)  # four of them find room
    assert told.wait_seconds("a") == pytest.approx(4)
    told.submitted("a", 8, 800)
    assert told.wait_seconds("a") == pytest.approx(12)
    told.worker.stats = gauges(waiting=1200, rate=100, running=10)  # type: ignore[misc]
    assert told.wait_seconds("a") == pytest.approx(12)
    told.submitted("a", 1, 100)
    assert told.wait_seconds("a") == pytest.approx(13)


def test_other_processes_are_taken_to_send_alike() -> None:
    told = backlog(gauges(waiting=100, rate=100, running=10), processes=4)
    told.submitted("a", 1, 100)
    assert told.wait_seconds("a") == pytest.approx(5)


def test_too_long_a_wait_is_refused_with_the_time_after_which_it_is_not() -> None:
    told = backlog(gauges(waiting=5000, rate=100, running=10), max_queue_seconds=30)
    with pytest.raises(Overloaded) as refused:
        told.check("a", 10, None)
    assert refused.value.retry_after == pytest.approx(20)
    told.worker.stats = gauges(waiting=2900, rate=100, running=10)  # type: ignore[misc]
    told.check("a", 10, None)


def test_a_deadline_that_would_pass_is_refused_before_any_work() -> None:
    told = backlog(gauges(waiting=1000, rate=100, running=10))
    with pytest.raises(Overloaded) as refused:
        told.check("a", 50, time.monotonic() + 12)  # ten seconds for its turn, five to run
    assert refused.value.param == "timeout"
    assert refused.value.retry_after == pytest.approx(1.3 * 15 - 12, abs=0.1)
    told.check("a", 50, time.monotonic() + 20)
    with pytest.raises(DeadlineExceeded):
        told.check("a", 50, time.monotonic() - 1)


def test_a_neighbours_backlog_is_not_waited_for() -> None:
    told = backlog(gauges(waiting=50_000, rate=100, running=10))
    told.check("b", 10, time.monotonic() + 1)
    assert told.wait_seconds("b") == 0
    told.submitted("b", 1, 100)
    assert told.wait_seconds("b") == pytest.approx(2), "its own, and as much of the neighbour's"
    told.submitted("b", 1, 100, weight=4.0)
    assert told.wait_seconds("b", weight=4.0) == pytest.approx(2.5), "its own, and a quarter of that of the neighbour's"
    with pytest.raises(Overloaded):
        told.check("a", 10, None)


class Rows:
    """An engine of ten rows, each a token a `beat`; first come, first served. Requests end as early as `ends` says."""

    ROWS, BEAT = 10, 0.1

    def __init__(self, ends: float, deadline: float) -> None:
        self.draw = random.Random(1)
        self.ends, self.deadline = ends, deadline
        self.free = [0.0] * self.ROWS
        self.pending: list[tuple[float, float, int]] = []
        """(start, arrival, declared tokens) of those that have not begun."""
        self.throughput = Throughput()
        self.done = 0.0
        self.backlog = backlog(gauges(), max_queue_seconds=20)
        self.good_tokens = 0.0
        self.good = self.accepted = self.offered = 0
        self.errors: list[float] = []

    def run(self, seconds: float, load: float) -> float:
        """Tokens of requests that ended in time, as a share of what the rows can do."""
        now, told, mean = 0.0, 0.0, 40
        each = self.BEAT * mean * self.ends / self.ROWS
        while now < seconds:
            now += self.draw.expovariate(load / each)
            self._begin(now)
            while told + 0.5 <= now:
                told += 0.5
                self._tell(told)
            self._offer(now, self.draw.randint(mean // 2, 3 * mean // 2))
        return self.good_tokens * self.BEAT / self.ROWS / seconds

    def _begin(self, now: float) -> None:
        while self.pending and self.pending[0][0] <= now:
            _, _, declared = heapq.heappop(self.pending)
            self.throughput.began(cost(0, declared))

    def _tell(self, now: float) -> None:
        full = bool(self.pending) or min(self.free) > now
        busy = sum(until > now for until in self.free)
        self.done += busy * 0.5 / self.BEAT
        self.throughput.tick(now, full=full, done=self.done)
        waiting = sum(declared for _, _, declared in self.pending)
        self.backlog.worker.stats = gauges(waiting, self.throughput.rate, busy)  # type: ignore[misc]

    def _offer(self, now: float, declared: int) -> None:
        self.offered += 1
        wait = self.backlog.wait_seconds("a")
        try:
            self.backlog.check("a", declared, time.monotonic() + self.deadline)
        except Overloaded:
            return
        self.accepted += 1
        self.backlog.submitted("a", 1, declared)
        start = max(now, heapq.heappop(self.free))
        end = start + declared * self.ends * self.BEAT
        heapq.heappush(self.free, end)
        heapq.heappush(self.pending, (start, now, declared))
        if end - now <= self.deadline:
            self.good += 1
            self.good_tokens += declared * self.ends
        if now > 30:
            self.errors.append(wait - (start - now))


@pytest.mark.parametrize("ends", [1.0, 0.5])
def test_at_three_times_what_it_can_do_it_does_what_it_can_and_within_the_deadline(ends: float) -> None:
    """`ends`: requests stop after that share of the tokens they ask for, which nobody is told beforehand."""
    engine = Rows(ends, deadline=20)
    goodput = engine.run(600, load=3)
    assert goodput > 0.9
    assert engine.good > 0.97 * engine.accepted, "work is not begun that comes too late"
    assert engine.accepted < 0.45 * engine.offered
    assert sum(map(abs, engine.errors)) / len(engine.errors) < 3.0


def test_at_half_of_what_it_can_do_nobody_is_refused() -> None:
    engine = Rows(1.0, deadline=20)
    engine.run(600, load=0.5)
    assert engine.accepted == engine.offered
