"""ASGI middleware around everything: counts answers, writes one line of log for each, knows what still runs."""

from __future__ import annotations

import asyncio
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softmux.telemetry.exposition import Metrics

log = structlog.stdlib.get_logger("softmux.access")
_QUIET = ("/health/", "/metrics")


class InFlight:
    """How many requests have begun and not ended: a server that drains waits until there are none."""

    def __init__(self) -> None:
        self.count = 0
        self._none = asyncio.Event()

    async def none(self) -> None:
        """Returns once nothing runs."""
        while self.count:
            self._none.clear()
            await self._none.wait()

    def begin(self) -> None:
        self.count += 1

    def end(self) -> None:
        self.count -= 1
        if not self.count:
            self._none.set()


class Observe:
    def __init__(self, app: ASGIApp, metrics: Metrics, in_flight: InFlight) -> None:
        self._app = app
        self._metrics = metrics
        self._in_flight = in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._in_flight.begin()
        try:
            await self._app(scope, receive, noting)
        finally:
            self._in_flight.end()
            self._metrics.answered(scope["method"], status)
            if not scope["path"].startswith(_QUIET):
                principal = scope.get("state", {}).get("principal")
                log.info(
                    "answered",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=round(1000 * (time.perf_counter() - began), 1),
                    tenant=principal.tenant if principal is not None else None,
                )
