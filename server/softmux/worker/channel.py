"""What comes back for the sequences of one request, gathered until its reader takes it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec

from softmux.errors import SoftmuxError
from softmux.types import Output, SamplingParams


class SequenceFailed(msgspec.Struct, frozen=True):
    """A sequence of a channel ended in an error instead of a last `Output`."""

    id: str
    error: SoftmuxError


Event = Output | SequenceFailed
Arrival = tuple[Sequence[float], Event]
"""What came, and when; monotonic. An `Output` has a time for each of its tokens where these came one by one."""


@dataclass(slots=True, eq=False)
class _Run:
    """Tokens of one sequence that came one by one, with nothing else to tell of them. They wait as plain numbers: a
    reader of whole replies leaves them for as long as a reply takes, and objects would be the collector's to walk."""

    id: str
    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def arrival(self) -> Arrival:
        return self.times, Output(id=self.id, tokens=tuple(self.tokens))


class Channel:
    """One reader at a time; it is woken once, however much has come. `abort` tells the worker to end a sequence."""

    __slots__ = ("_abort", "_arrived", "_failed", "_open", "_patient", "_runs", "_waiter", "made", "sampling", "told")

    def __init__(
        self, abort: Callable[[str], None], ids: Iterable[str], sampling: SamplingParams | None = None
    ) -> None:
        self.sampling = sampling
        """By which its sequences choose tokens, where they do."""
        self.made = time.monotonic()
        """Monotonic, seconds: before anything of the request can reach a worker."""
        self._abort = abort
        self._open = set(ids)
        self.told: dict[str, int] = {}
        """How many tokens have come of each sequence that anything has come of."""
        self._arrived: list[Arrival | _Run] = []
        self._runs: dict[str, _Run] = {}
        """By sequence, the run among them that its next token goes on with."""
        self._failed = False
        self._patient = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def open(self) -> frozenset[str]:
        """The ids of sequences that have neither finished nor failed."""
        return frozenset(self._open)

    async def events(self) -> list[Event]:
        """All that came since the last call, each sequence's in order; waits until there is something. Empty once all
        have ended."""
        return [event for _, event in await self.arrivals()]

    async def arrivals(self, *, whole: bool = False) -> list[Arrival]:
        """As `events`, each with when it came. `whole` waits until all have ended, or one has failed: one wake-up for
        a reader that has no use for parts."""
        while self._open and not (self._failed if whole else self._arrived):
            self._waiter, self._patient = asyncio.get_running_loop().create_future(), whole
            try:
                await self._waiter
            finally:
                self._waiter = None
        arrived, self._arrived, self._failed = self._arrived, [], False
        self._runs.clear()
        return [one.arrival() if isinstance(one, _Run) else one for one in arrived]

    def abort(self, sequence_id: str) -> None:
        """Ends one sequence early: nothing more comes for it. Unknown and ended ones are ignored."""
        if sequence_id in self._open:
            self._open.discard(sequence_id)
            self._abort(sequence_id)
            self._wake()

    def close(self) -> None:
        """Ends what is still running. Call it however the request ended."""
        for sequence_id in list(self._open):
            self.abort(sequence_id)

    def deliver(self, event: Event, at: float, *, last: bool) -> None:
        """Called by the client's receive loop."""
        self._arrived.append(((at,), event))
        self._runs.pop(event.id, None)
        if isinstance(event, Output):
            self.told[event.id] = self.told.get(event.id, 0) + len(event.tokens)
        if last:
            self._open.discard(event.id)
            self._failed = self._failed or isinstance(event, SequenceFailed)
        if not self._patient or self._failed or not self._open:
            self._wake()

    def deliver_token(self, sequence_id: str, token: int, at: float) -> None:
        """As `deliver`, of an `Output` that is no more than a token."""
        run = self._runs.get(sequence_id)
        if run is None:
            run = self._runs[sequence_id] = _Run(sequence_id)
            self._arrived.append(run)
        run.times.append(at)
        run.tokens.append(token)
        self.told[sequence_id] = self.told.get(sequence_id, 0) + 1
        if not self._patient:
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
