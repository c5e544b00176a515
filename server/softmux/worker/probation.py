"""Requests that may have felled a worker: run one at a time, so that the next death tells which of them it was."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from softmux.errors import Overloaded
from softmux.scheduler.sequence import Sequence
from softmux.worker.messages import Generate, Read

_MOST = 1024


@dataclass(frozen=True, slots=True)
class Suspect:
    client: bytes
    message: Generate | Read
    came: float
    """Monotonic."""


class Probation:
    """First come, first served; others run beside the one whose turn it is."""

    def __init__(self) -> None:
        self._waiting: deque[Suspect] = deque()
        self._running: Sequence | None = None

    def __len__(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def wait(self, suspect: Suspect) -> None:
        """Raises `Overloaded` where too many do."""
        if len(self._waiting) >= _MOST:
            raise Overloaded("too many requests wait that were in a step which failed; retry later", retry_after=5.0)
        self._waiting.append(suspect)

    def turn(self) -> Suspect | None:
        """Whose turn it is, if the one before has ended. To be told to `began`, if it did."""
        if self._running is not None and self._running.finished is None:
            return None
        self._running = None
        return self._waiting.popleft() if self._waiting else None

    def began(self, sequence: Sequence) -> None:
        self._running = sequence

    def abort(self, client: bytes, sequence_id: str | None = None) -> None:
        """Forgets one that waits, or all of a client's."""
        self._waiting = deque(
            one
            for one in self._waiting
            if one.client != client or (sequence_id is not None and one.message.id != sequence_id)
        )

    def late(self, now: float) -> list[Suspect]:
        """Takes out those whose deadline has passed."""
        late = [one for one in self._waiting if one.came + (one.message.deadline or float("inf")) <= now]
        if late:
            self._waiting = deque(one for one in self._waiting if one not in late)
        return late
