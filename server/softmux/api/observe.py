"""ASGI middleware around everything: counts answers, writes one line of log for each, knows what still runs."""

from __future__ import annotations

import asyncio
import time

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from softmux.api.errors import unforeseen
from softmux.telemetry.exposition import Metrics
from softmux.telemetry.tracing import Tracer
from softmux.telemetry.trail import HEADER, Trail, begin

log = structlog.stdlib.get_logger("softmux.access")
_QUIET = ("/health/", "/metrics", "/console/")
_HEADER = HEADER.encode("ascii")
_DIRECT = frozenset({"/v1/generate", "/v1/completions", "/v1/chat/completions"})
"""Routes that may be answered before the framework has looked which it is (`softmux.api.direct`)."""


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
    """Takes the client's `x-request-id`, or makes one, and gives it back; `tracer` is told of what is over."""

    def __init__(self, app: ASGIApp, metrics: Metrics, in_flight: InFlight, tracer: Tracer | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._in_flight = in_flight
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        trail = begin(headers.get(HEADER))
        structlog.contextvars.bind_contextvars(request_id=trail.request_id)
        mark = (_HEADER, trail.request_id.encode("ascii"))
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), mark]}
            await send(message)

        self._in_flight.begin()
        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if status:  # its answer has begun: the connection is closed
                raise
            await unforeseen(scope["method"], scope["path"], error)(scope, receive, noting)
        finally:
            self._in_flight.end()
            self._metrics.answered(scope["method"], status)
            if not scope["path"].startswith(_QUIET):
                self._tell(scope, headers, trail, status)

    def _tell(self, scope: Scope, headers: dict[str, str], trail: Trail, status: int) -> None:
        principal = scope.get("state", {}).get("principal")
        tenant = principal.tenant if principal is not None else None
        ended = time.monotonic()
        line = trail.line()
        if self._tracer is not None:
            traced = self._tracer.tell(
                trail, headers, method=scope["method"], route=_route(scope), status=status, tenant=tenant, ended=ended
            )
            if traced is not None:
                line["trace_id"] = traced
        log.info(
            "answered",
            method=scope["method"],
            path=scope["path"],
            status=status,
            ms=round(1000 * (ended - trail.began), 1),
            tenant=tenant,
            **line,
        )


def _route(scope: Scope) -> str:
    """The route's path as it is declared: names in paths would make as many spans' names. Empty where there is none."""
    found = getattr(scope.get("route"), "path", None)
    return str(found) if found is not None else scope["path"] if scope["path"] in _DIRECT else ""
