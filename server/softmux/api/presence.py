"""Work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.requests import Request


class ClientGone(Exception):
    """The client closed the connection before its answer."""


@contextlib.contextmanager
def watching(request: Request, gone: Callable[[], None]) -> Iterator[None]:
    """Calls `gone` if the client leaves within the `with`. The body must have been read."""
    leaving = asyncio.ensure_future(_left(request))
    leaving.add_done_callback(lambda task: None if task.cancelled() or task.exception() is not None else gone())
    try:
        yield
    finally:
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
