"""How long a newcomer would wait, told without asking the worker; and the refusal of those who would wait too long."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from softmux.errors import DeadlineExceeded, Overloaded
from softmux.settings import Settings
from softmux.telemetry.exposition import Metrics
from softmux.worker.messages import LATE, Stats
from softmux.worker.replicas import Replicas

_CARE = 1.3
"""Estimates are too short as often as too long, and what comes after its deadline was worked for in vain."""


@dataclass(slots=True)
class _Sent:
    """What a tenant has sent since the worker last spoke."""

    sequences: int = 0
    cost: float = 0.0
    weight: float = 1.0


@dataclass(slots=True)
class Backlog:
    """What waits of each tenant as the worker says, some twice a second, and what this process sent since: `processes`
    of them are taken to send alike. Costs are `softmux.cost`'s.

    Tenants are served alike by their weights, so before a newcomer goes what waits of its own tenant, and of each other
    one no more than that times the ratio of their weights.
    """

    settings: Settings
    worker: Replicas
    metrics: Metrics
    processes: int = 1
    _stats: Stats | None = None
    _sent: dict[str, _Sent] = field(default_factory=dict)

    def submitted(self, tenant: str, sequences: int, cost: float, weight: float = 1.0) -> None:
        """These were sent to the worker."""
        self._look()
        sent = self._sent.setdefault(tenant, _Sent())
        sent.sequences += sequences
        sent.cost += cost
        sent.weight = weight

    def wait_seconds(self, tenant: str, weight: float = 1.0) -> float:
        """From a newcomer's receipt to its first step; 0 where there is room, or nothing is known yet."""
        self._look()
        stats = self._stats
        rate = 0.0 if stats is None else stats.gauges.get("queue_cost_per_second", 0.0)
        if stats is None or not rate:
            return 0.0
        queues = self._queues(stats)
        own, _ = queues.pop(tenant, (0.0, weight))
        return (own + sum(min(other, own * theirs / weight) for other, theirs in queues.values())) / rate

    def _queues(self, stats: Stats) -> dict[str, tuple[float, float]]:
        """By tenant the cost of what waits by now, and its weight."""
        queues = dict(stats.queues)
        share = 1.0  # of what was sent since, that which found no row free
        if not queues:
            free = self.settings.max_rows * self.worker.up - stats.gauges.get("num_requests_running", 0.0)
            sequences = self.processes * sum(sent.sequences for sent in self._sent.values())
            share = max(0.0, 1 - free / sequences) if sequences else 0.0
        for tenant, sent in self._sent.items():
            waiting, _ = queues.get(tenant, (0.0, 0.0))
            queues[tenant] = waiting + share * self.processes * sent.cost, sent.weight
        return queues

    def check(self, tenant: str, cost: float, deadline: float | None, weight: float = 1.0) -> None:
        """Refuses, at once, a tenant's request of so much cost that would wait longer than it may, or not end by its
        `deadline` (monotonic). Raises `Overloaded`, or `DeadlineExceeded` where that has passed."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlineExceeded(LATE)
        wait = self.wait_seconds(tenant, weight)
        if not wait:
            return
        most = self.settings.max_queue_seconds
        if wait > most:
            self.metrics.refused("queue")
            raise Overloaded(
                f"A request would wait {wait:.0f} s for its turn, and {most:.0f} s is the most; retry later.",
                retry_after=wait - most,
            )
        whole = _CARE * (wait + self._run_seconds(cost))
        if left is not None and whole > left:
            self.metrics.refused("deadline")
            raise Overloaded(
                f"The request would take {whole:.1f} s, and its deadline is in {left:.1f} s; retry later.",
                param="timeout",
                retry_after=whole - left,
            )

    def _run_seconds(self, cost: float) -> float:
        """How long a row of that cost runs, beside as many as run now."""
        assert self._stats is not None, "there is a wait"
        gauges = self._stats.gauges
        return cost * max(1.0, gauges.get("num_requests_running", 0.0)) / gauges["queue_cost_per_second"]

    def _look(self) -> None:
        if self.worker.stats is not self._stats:  # it knows of what was sent before
            self._stats = self.worker.stats
            self._sent.clear()
