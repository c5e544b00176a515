"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from softmux.api.errors import error_body
from softmux.errors import SoftmuxError

DONE = b"data: [DONE]\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def error_event(error: SoftmuxError) -> bytes:
    return event(error_body(error))


class EventStream(Response):
    """An answer of events, each item of `events` one write. The generator sees to it itself that it ends when the
    client is gone, and is closed in any case: it is begun before anything is sent, since closing one that never began
    ends nothing."""

    def __init__(self, events: AsyncGenerator[bytes, None], headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self._start = [*_HEADERS, *((name.encode(), value.encode()) for name, value in headers.items())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            some = await anext(self._events, b"")
            await send({"type": "http.response.start", "status": 200, "headers": self._start})
            while some:
                await send({"type": "http.response.body", "body": some, "more_body": True})
                some = await anext(self._events, b"")
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await self._events.aclose()


class Chunks:
    """Encodes the chunks of one reply: what they have in common is encoded once."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":'
        self._encode = msgspec.json.Encoder().encode

    def chunk(
        self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None, *, tells_usage: bool = False
    ) -> bytes:
        """`tells_usage`: as null, where there is none."""
        if usage is None and not tells_usage:
            return b"".join((self._head, self._encode(choices), b"}\n\n"))
        return b"".join((self._head, self._encode(choices), b',"usage":', self._encode(usage), b"}\n\n"))
