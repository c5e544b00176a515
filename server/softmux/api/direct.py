"""The way around the framework for the routes that generate, by which everything is measured."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from softmux.api.errors import error_response
from softmux.api.queries import LONGEST_TASK
from softmux.api.routers import generate, openai
from softmux.errors import SoftmuxError

_BY_BODY = {openai.COMPLETIONS: openai.completions, openai.CHAT: openai.chat_completions}
"""Routes that read nothing of a request but its body and headers."""


class Direct:
    """ASGI middleware: answers a `POST` to a generating route by the same function that the framework would call.

    Routing, dependencies and their exit stacks cost as much as all the rest of a short request. The routes are still
    declared, described, and answer whatever is odd about a request's line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            request = Request(scope, receive)
            try:
                response = await _answer(request)
            except SoftmuxError as error:
                response = error_response(error)
            if response is not None:
                await response(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _answer(request: Request) -> Response | None:
    """None: the framework's to answer."""
    path = request.scope["path"]
    if path == generate.PATH:
        query = request.scope["query_string"]
        if not query:
            return await generate.generate(request)
        task = _task(query)
        return None if task is None else await generate.generate(request, task)
    route = _BY_BODY.get(path)
    return None if route is None else await route(request)


def _task(query: bytes) -> str | None:
    """What it names. None where there is more in it than a task, or no task that could be one."""
    said = QueryParams(query).multi_items()
    name, task = said[0] if len(said) == 1 else ("", "")
    return task if name == "task" and 0 < len(task) <= LONGEST_TASK else None
