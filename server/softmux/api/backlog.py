"""How long a newcomer would wait, told without asking the worker; and the refusal of those who would wait too long."""

from __future__ import annotations

import time
from dataclasses import dataclass

from softmux.errors import DeadlineExceeded, Overloaded
from softmux.settings import Settings
from softmux.telemetry.exposition import Metrics
from softmux.worker.client import WorkerClient
from softmux.worker.messages import LATE, Stats

_CARE = 1.15
"""Estimates are too short as often as too long, and what comes after its deadline was worked for in vain."""


@dataclass(slots=True)
class Backlog:
    """The worker's gauges, some twice a second, and what this process sent since: `processes` of them are taken to send
    alike. Costs are `softmux.cost`'s."""

    settings: Settings
    worker: WorkerClient
    metrics: Metrics
    processes: int = 1
    _stats: Stats | None = None
    _sequences: int = 0
    _cost: float = 0.0

    def submitted(self, sequences: int, cost: float) -> None:
        """These were sent to the worker."""
        self._look()
        self._sequences += sequences
        self._cost += cost

    def wait_seconds(self) -> float:
        """From a newcomer's receipt to its first step; 0 where there is room, or nothing is known yet."""
        self._look()
        stats = self._stats
        rate = 0.0 if stats is None else stats.gauges.get("queue_cost_per_second", 0.0)
        if stats is None or not rate:
            return 0.0
        sequences, cost = self.processes * self._sequences, self.processes * self._cost
        waiting = stats.gauges.get("queue_cost", 0.0)
        if not waiting:
            free = self.settings.max_rows - stats.gauges.get("num_requests_running", 0.0)
            if sequences < free:
                return 0.0
            cost *= 1 - free / sequences if sequences else 0.0
        return (waiting + cost) / rate

    def check(self, cost: float, deadline: float | None) -> None:
        """Refuses, at once, a request of so much cost that would wait longer than it may, or not end by its `deadline`
        (monotonic). Raises `Overloaded`, or `DeadlineExceeded` where that has passed."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise DeadlineExceeded(LATE)
        wait = self.wait_seconds()
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
            self._stats, self._sequences, self._cost = self.worker.stats, 0, 0.0
