"""The way around the framework for the one route that everything is measured by."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from softmux.api.errors import error_response
from softmux.api.routers import generate
from softmux.errors import SoftmuxError


class Direct:
    """ASGI middleware: answers `POST /v1/generate` by the same function that the framework's route would call.

    Routing, dependencies and their exit stacks cost as much as all the rest of a short request. The route is still
    declared, described, and answers whatever is odd about a request's line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == generate.PATH and scope["method"] == "POST":
            task = QueryParams(scope["query_string"]).get("task") if scope["query_string"] else None
            if task is None or 0 < len(task) <= generate.LONGEST_TASK:
                try:
                    response = await generate.generate(Request(scope, receive), task)
                except SoftmuxError as error:
                    response = error_response(error)
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)
