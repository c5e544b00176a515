"""HTTP/1.1 as uvicorn speaks it, within bounds for what comes before a body: bytes and seconds."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from softmux.api.errors import error_body
from softmux.errors import BadRequest, DeadlineExceeded, SoftmuxError

MOST_HEAD_BYTES = 64 << 10
"""A request's line and headers."""
HEAD_SECONDS = 30.0
"""How long they may take, from the request's first byte on: who sends a byte a minute holds a place that others could
have."""
SILENT_SECONDS = 120.0
"""How long a connection may wait for its first byte: a client that opens thousands takes a while to speak on each."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection. What is no HTTP is told so in the contract's shape."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._begin_head(SILENT_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_head(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        self._end_head()
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MOST_HEAD_BYTES:
            self._refuse_head()
        else:
            super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, BadRequest("This is no valid HTTP request; let an HTTP client write it."))

    def _begin_head(self, seconds: float) -> None:
        self._end_head()
        self._in_head, self._head_bytes = True, 0
        self._late = self.loop.call_later(seconds, self._too_late)

    def _end_head(self) -> None:
        self._in_head = False
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        if not self._head_bytes:  # nobody asked for anything
            self.transport.close()
            return
        self._refuse(
            HTTPStatus.REQUEST_TIMEOUT,
            DeadlineExceeded(f"The request's headers have not come within {HEAD_SECONDS:.0f} s; send it again."),
        )

    def _refuse_head(self) -> None:
        self._refuse(
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            BadRequest(f"The request's line and headers have more than {MOST_HEAD_BYTES:,} bytes; send less."),
        )

    def _refuse(self, status: HTTPStatus, error: SoftmuxError) -> None:
        """Answers and closes; nothing else is read from the connection."""
        if self.transport.is_closing():
            return
        body = msgspec.json.encode(error_body(error))
        lines = (
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        )
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()
