"""`HEAD`, which every route that takes `GET` answers: probes ask with it."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class Head:
    """ASGI middleware: to what is below, a `HEAD` is a `GET`. The HTTP server, which knows better, sends no body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = {**scope, "method": "GET"}
        try:
            await self._app(inner, receive, send)
        finally:
            if "route" in inner:  # what is above tells of it
                scope["route"] = inner["route"]
