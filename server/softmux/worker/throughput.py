"""How fast the queue moves: what an API process needs in order to tell a newcomer how long it will wait."""

from __future__ import annotations

import math

_MEMORY_SECONDS = 20.0
_LEAST_WINDOW = 0.2


class Throughput:
    """Cost per second (`softmux.cost`) while more was asked than could run: the higher of what was begun, as requests
    declared it, and what was done. The first counts that many end early; the second, that they begin in bursts.

    `tick` closes a window; those in which there was room for everyone say nothing of what the engine can do.
    """

    def __init__(self) -> None:
        self._at: float | None = None
        self._was_full = False
        self._begun = self._begun_before = 0.0
        self._done_before = 0.0
        self._weight = self._begun_sum = self._done_sum = 0.0

    def began(self, cost: float) -> None:
        """A sequence of that cost has had its first step."""
        self._begun += cost

    def tick(self, now: float, *, full: bool, done: float) -> None:
        """`done` is the cost of all that was ever computed; `full`: no newcomer could run at once."""
        if self._at is not None:
            seconds = now - self._at
            if seconds < _LEAST_WINDOW:
                return
            if full and self._was_full:
                fade = math.exp(-seconds / _MEMORY_SECONDS)
                self._weight = self._weight * fade + seconds
                self._begun_sum = self._begun_sum * fade + self._begun - self._begun_before
                self._done_sum = self._done_sum * fade + done - self._done_before
        self._at, self._was_full = now, full
        self._begun_before, self._done_before = self._begun, done

    @property
    def rate(self) -> float:
        """0 until it has been measured."""
        return max(self._begun_sum, self._done_sum) / self._weight if self._weight else 0.0
