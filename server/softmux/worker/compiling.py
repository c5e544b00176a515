"""Requests whose grammar is being compiled: they wait out of the batch, and no other request waits for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from softmux.errors import Overloaded
from softmux.worker.messages import Generate

_MOST = 4096


@dataclass(frozen=True, slots=True)
class Compiling:
    client: bytes
    message: Generate
    came: float
    """Monotonic."""


class CompilingRequests:
    """`take` gives those that may begin, in the order of their coming."""

    def __init__(self) -> None:
        self._waiting: list[Compiling] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, one: Compiling) -> None:
        """Raises `Overloaded` where too many do."""
        if len(self._waiting) >= _MOST:
            raise Overloaded("too many requests wait for their grammars; retry later")
        self._waiting.append(one)

    def take(self, compiled: Callable[[Compiling], bool]) -> list[Compiling]:
        """Takes out those whose grammar has been compiled."""
        return self._take(compiled)

    def abort(self, client: bytes, sequence_id: str | None = None) -> None:
        """Forgets one, or all of a client's."""
        self._waiting = [
            one
            for one in self._waiting
            if one.client != client or (sequence_id is not None and one.message.id != sequence_id)
        ]

    def late(self, now: float) -> list[Compiling]:
        """Takes out those whose deadline has passed."""
        return self._take(lambda one: one.message.deadline is not None and one.came + one.message.deadline <= now)

    def _take(self, wanted: Callable[[Compiling], bool]) -> list[Compiling]:
        """One pass: thousands may wait for one grammar, and be taken at once."""
        if not self._waiting:
            return []
        taken: list[Compiling] = []
        left: list[Compiling] = []
        for one in self._waiting:
            (taken if wanted(one) else left).append(one)
        self._waiting = left
        return taken
