"""A day of a large cluster in seconds: replicas as fluids, adapters as numbers, the routing softmux's own.

A replica runs up to `rows` requests beside each other; a step takes what was measured for so many rows, and a
newcomer's prompt stops the steps for as long as its prefill was measured to take. An adapter that is not in memory is
fetched from the blob store over the replica's own line, one after the other, while steps go on; so a miss costs its own
request time, and a line that has too much to fetch makes all who miss wait.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from softmux.routing.policies import Policy


@dataclass(frozen=True, slots=True)
class Service:
    """What one GPU does, in seconds. `steps`: (rows, time of a step), as measured, ascending."""

    steps: tuple[tuple[int, float], ...]
    prefill: float
    """A newcomer's prompt."""
    rows: int = 256
    tokens: int = 128
    """New ones of a request."""

    def step(self, rows: int) -> float:
        points = np.array(self.steps)
        return float(np.interp(rows, points[:, 0], points[:, 1]))

    @property
    def capacity(self) -> float:
        """Requests a second when all rows are taken."""
        return self.rows / (self.tokens * self.step(self.rows) + self.rows * self.prefill)


@dataclass(frozen=True, slots=True)
class Adapters:
    """How many there are and fit one replica's host memory, how popular, and what a fetch takes, in seconds."""

    name: str
    count: int
    fit: int
    size: float
    """Bytes."""
    exponent: float = 1.0
    latency: float = 0.03
    bandwidth: float = 1.25e9
    """Bytes a second of a replica's line."""

    def draw(self, requests: int, random: np.random.Generator) -> NDArray[np.int64]:
        """The adapter of each request; 0 is the most popular."""
        weights = np.arange(1, self.count + 1, dtype=np.float64) ** -self.exponent
        return random.choice(self.count, size=requests, p=weights / weights.sum())


@dataclass(slots=True)
class Measured:
    """Of the requests counted: those that found their adapter in memory, and each one's time to its first token."""

    hits: int = 0
    first_token: list[float] = field(default_factory=list)
    ended: float = 0.0
    most_loaded: float = 0.0
    """The busiest replica's requests over the mean."""


class _Replica:
    """Steps progress at one speed for all rows: `done` counts the steps since the start."""

    def __init__(self, service: Service, adapters: Adapters, times: Sequence[float]) -> None:
        self._service, self._adapters, self._times = service, adapters, times
        self.kept: dict[int, None] = {}
        self.running: list[float] = []
        """At which `done` each row ends: a heap."""
        self.waiting: deque[tuple[float, int]] = deque()
        self.line_free = 0.0
        self.busy_until = 0.0
        self.done = 0.0
        self.at = 0.0
        self.version = 0
        self.served = 0

    def has(self, adapter: int) -> bool:
        """Whether it was in memory; it is from now on, and the least recently used gives way."""
        hit = adapter in self.kept
        if hit:
            del self.kept[adapter]
        elif len(self.kept) >= self._adapters.fit:
            del self.kept[next(iter(self.kept))]
        self.kept[adapter] = None
        return hit

    def fetched(self, now: float) -> float:
        """When an adapter asked for now is there."""
        self.line_free = max(self.line_free, now) + self._adapters.size / self._adapters.bandwidth
        return self.line_free + self._adapters.latency

    def advance(self, now: float) -> None:
        began = max(self.at, self.busy_until)
        if now > began and self.running:
            self.done += (now - began) / self._times[len(self.running)]
        self.at = max(self.at, now)

    def admit(self, now: float) -> float:
        """A request begins; when its first token is there."""
        self.busy_until = max(self.busy_until, now) + self._service.prefill
        heapq.heappush(self.running, self.done + self._service.tokens)
        self.served += 1
        return self.busy_until

    def next_end(self, now: float) -> float:
        return max(now, self.busy_until) + max(0.0, self.running[0] - self.done) * self._times[len(self.running)]


def simulate(
    policy: Policy,
    service: Service,
    adapters: Adapters,
    chosen: NDArray[np.int64],
    arrivals: NDArray[np.float64],
    names: Sequence[str],
    kept: Sequence[Sequence[int]],
    *,
    uncounted: int,
) -> Measured:
    """Requests `chosen` (adapters) at `arrivals` (s, ascending) over replicas `names`, whose memories begin with `kept`
    (the least recently used first). The first `uncounted` only warm up."""
    times = [service.step(rows) for rows in range(service.rows + 1)]
    replicas = {name: _Replica(service, adapters, times) for name in names}
    for name, held in zip(names, kept, strict=True):
        replicas[name].kept = dict.fromkeys(held)
    loads = dict.fromkeys(names, 0.0)
    found = Measured(first_token=[0.0] * (len(chosen) - uncounted))
    events: list[tuple[float, int, int, str]] = []  # time, kind (0 an end, 1 an adapter is there), number, replica

    def told(name: str, now: float) -> None:
        replica = replicas[name]
        replica.version += 1
        if replica.running:
            heapq.heappush(events, (replica.next_end(now), 0, replica.version, name))

    def begin(name: str, now: float, number: int) -> None:
        replica = replicas[name]
        replica.advance(now)
        if len(replica.running) >= service.rows:
            replica.waiting.append((now, number))
            return
        first = replica.admit(now)
        if number >= uncounted:
            found.first_token[number - uncounted] = first - arrivals[number]
        told(name, now)

    def handle(event: tuple[float, int, int, str]) -> None:
        now, kind, number, name = event
        replica = replicas[name]
        if kind == 1:
            begin(name, now, number)
        elif number == replica.version:
            replica.advance(now)
            heapq.heappop(replica.running)
            loads[name] -= 1
            if replica.waiting:
                begin(name, now, replica.waiting.popleft()[1])
            else:
                told(name, now)

    for number, (adapter, now) in enumerate(zip(chosen.tolist(), arrivals.tolist(), strict=True)):
        while events and events[0][0] <= now:
            handle(heapq.heappop(events))
        key = f"task-{adapter}"
        name = policy.rank(key, loads)[0]
        policy.sent(key, name)
        loads[name] += 1
        if replicas[name].has(adapter):
            found.hits += number >= uncounted
            begin(name, now, number)
        else:
            heapq.heappush(events, (replicas[name].fetched(now), 1, number, name))
    while events:
        event = heapq.heappop(events)
        found.ended = event[0]
        handle(event)
    served = [replica.served for replica in replicas.values()]
    found.most_loaded = max(served) * len(served) / sum(served)
    return found


def homes(count: int, names: Sequence[str]) -> NDArray[np.int64]:
    """Where each of `count` adapters is at home: what `Rendezvous` says, as a number in `names`, all at once."""
    from softmux.routing.rendezvous import hashed

    keys = np.array([hashed(f"task-{number}") for number in range(count)], dtype=np.uint64)
    best, place = np.zeros(count, dtype=np.uint64), np.zeros(count, dtype=np.int64)
    for number, name in enumerate(names):
        mixed = keys ^ np.uint64(hashed(name))
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        better = mixed >= best
        best[better], place[better] = mixed[better], number
    return place
