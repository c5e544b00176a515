"""Server-sent events."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.responses import StreamingResponse

from softmux.api.errors import error_body
from softmux.errors import SoftmuxError

DONE = b"data: [DONE]\n\n"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def error_event(error: SoftmuxError) -> bytes:
    return event(error_body(error))


def stream(events: AsyncGenerator[bytes, None]) -> StreamingResponse:
    """An answer of `events`. The generator is closed when the client goes away."""

    async def closing() -> AsyncGenerator[bytes, None]:
        try:
            async for some in events:
                yield some
        finally:
            await events.aclose()

    return StreamingResponse(closing(), media_type="text/event-stream", headers=_HEADERS)


class Chunks:
    """Encodes the chunks of one reply: what they have in common is encoded once."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":'
        self._encode = msgspec.json.Encoder().encode

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
        if usage is None:
            return b"".join((self._head, self._encode(choices), b"}\n\n"))
        return b"".join((self._head, self._encode(choices), b',"usage":', self._encode(usage), b"}\n\n"))
