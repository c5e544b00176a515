"""The server's other API processes, as one of them sees them: reached through the server, which knows them all."""

from __future__ import annotations

from softmux.api.control import Broke, Changed, Cleared, Count, Line, Released
from softmux.telemetry.samples import Samples

_COUNT_SECONDS = 0.5
_SEE_SECONDS = 1.0


class Siblings:
    def __init__(self, line: Line) -> None:
        self._line = line

    async def counts(self) -> Samples:
        """What all the others have counted, those that have ended included."""
        answer = await self._line.ask(Count, _COUNT_SECONDS)
        return () if answer is None else answer.samples

    async def see(self, tenant: str, task: str | None) -> None:
        """Returns once all the others know of a change to a task (or, where that is None, to a tenant or a key):
        whichever process the client's next request comes to, it finds what was done. One that does not answer within a
        second is not waited for: it hears of the change from the registry."""
        await self._line.ask(lambda number: Changed(number, tenant, task), _SEE_SECONDS)

    # What the server keeps a book of; it tells all, this process included, what follows from it.

    def report_cleared(self, content: int, version: int) -> None:
        self._line.send(Cleared(content, version))

    def report_broke(self, version: int) -> None:
        self._line.send(Broke(version))

    def report_released(self, version: int) -> None:
        """Heard by the others before a `see` that follows has returned."""
        self._line.send(Released(version))
