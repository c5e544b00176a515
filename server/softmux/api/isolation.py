"""The server's side of the quarantine: keeps the book, and tells all API processes of each change."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

import msgspec
import structlog

from softmux.api.control import Broke, Cleared, Released, Report, State
from softmux.worker.quarantine import Quarantine
from softmux.worker.supervisor import Death

log = structlog.stdlib.get_logger(__name__)

_EXPIRE_SECONDS = 5.0


class Isolation:
    """`tell` changes the `State` of all API processes."""

    def __init__(self, quarantine: Quarantine, tell: Callable[[Callable[[State], State]], None]) -> None:
        self._quarantine, self._tell = quarantine, tell
        self._deaths: Counter[str] = Counter()
        self._fell: frozenset[int] = frozenset()

    def died(self, death: Death) -> None:
        """A worker is no more, and nobody wanted it."""
        self._deaths[death.cause] += 1
        self._fell = death.running.contents
        self._quarantine.died(death.running, killed=death.killed)
        verdicts = self._quarantine.verdicts()
        what = "the worker died with rows in its step" if death.running.contents else "the worker died"
        log.warning(
            "a worker was refused when it was started again" if death.cause == "refused" else what,
            cause=death.cause,
            requests=len(death.running.contents),
            versions=len(death.running.versions),
            quarantined=len(verdicts.requests),
            quarantined_versions=len(verdicts.felling),
        )
        self._say()

    def hear(self, report: Report) -> None:
        match report:
            case Cleared():
                changed = self._quarantine.cleared(report.content, report.version)
            case Broke():
                changed = self._quarantine.not_finite(report.version)
            case Released():
                changed = self._quarantine.release(report.version)
        if changed:
            self._say()

    async def run(self) -> None:
        """Lets what is old expire, until it is cancelled."""
        while True:
            await asyncio.sleep(_EXPIRE_SECONDS)
            if self._quarantine.expire():
                self._say()

    def _say(self) -> None:
        told = {"verdicts": self._quarantine.verdicts(), "deaths": dict(self._deaths), "fell": self._fell}
        self._tell(lambda state: msgspec.structs.replace(state, **told))
