"""When requests come: all at once, as others end (closed loop), or at times of their own (Poisson, a trace)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softmux.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When each request is due, in seconds from the start, ascending: `[requests]`; and how many may run at once
    (None: any number). All times zero and a limit is a closed loop; times of their own and no limit an open one. With
    both, a request that is due waits for one to end, and what it waited shows as the client's lag."""

    times: NDArray[np.float64]
    concurrency: int | None = None

    @property
    def paced(self) -> bool:
        """Whether requests have times of their own."""
        return bool(self.times.any())

    def share(self, part: int, parts: int) -> Arrivals:
        """What one of several clients sends: every `parts`-th request, and its share of the concurrency."""
        limit = self.concurrency
        return Arrivals(self.times[part::parts], None if limit is None else limit // parts + (part < limit % parts))


def at_once(count: int, concurrency: int | None = None) -> Arrivals:
    """Every request is due at the start; with `concurrency`, each waits for one of so many places: a closed loop."""
    return Arrivals(np.zeros(count), concurrency)


def paced_times(count: int, rate: float, draw: np.random.Generator, *, burstiness: float = 1.0) -> NDArray[np.float64]:
    """Times of `count` arrivals at `rate` a second.

    Gaps are gamma distributed with shape `burstiness` and mean 1/rate: 1 is a Poisson process, less comes in bursts,
    more is steadier, infinity ticks like a clock. As in vLLM's bench, the times are stretched so that the last one
    falls at count/rate: two seeds then offer the same load.
    """
    if not (rate > 0 and burstiness > 0):
        raise InvalidRequest("A request rate and a burstiness are above zero.", param="request-rate")
    if math.isinf(rate) or not count:
        return np.zeros(count)
    if math.isinf(burstiness):
        return np.arange(1, count + 1) / rate
    times = np.cumsum(draw.gamma(burstiness, 1.0, count))
    stretched: NDArray[np.float64] = times * (count / rate / times[-1])
    return stretched
