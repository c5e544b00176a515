"""What something took, each time, for whoever counts it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

_KEPT = 1 << 12
"""More than come between two counts of a worker, which counts with every step."""


class Durations:
    """Seconds that nobody has counted yet; threads may add some while another takes. Where nobody counts, as in an
    engine without a worker, only the latest are kept: they would grow for as long as the process lives."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)

    def add(self, seconds: float) -> None:
        self._seconds.append(seconds)

    def take(self) -> Iterator[float]:
        """Each once, the oldest first."""
        while self._seconds:
            yield self._seconds.popleft()
