"""A histogram for what is observed with every token: a bisection and two additions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class TokenHistogram:
    """`buckets` are upper bounds; +Inf follows. Of one thread."""

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, buckets: Sequence[float]) -> None:
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def observe_since(self, before: float, moments: Sequence[float]) -> None:
        """The seconds from `before` to the first of the moments, and from each to the next."""
        bounds, counts, last = self._bounds, self._counts, before
        for moment in moments:
            counts[bisect_left(bounds, moment - last)] += 1
            last = moment
        self.sum += last - before

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, how many were at most that), as Prometheus wants them."""
        bounds = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return [(bound, float(count)) for bound, count in zip(bounds, accumulate(self._counts), strict=True)]
