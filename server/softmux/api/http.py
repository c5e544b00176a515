"""The HTTP server of an API process: uvicorn, answering on connections it is handed rather than on ports."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from softmux.api.protocol import BoundedProtocol

_CLOSE_SECONDS = 5
_KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx 5 s, aiohttp 15 s, load balancers 60 s): who closes it second
can't lose a request that is on its way."""
_CLOSE = (b"connection", b"close")


class HttpServer(uvicorn.Server):
    """`serve` answers until `should_exit`. `connections` is the socket over which the server hands connections."""

    def __init__(self, app: ASGIApp, connections: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                http=BoundedProtocol,
                lifespan="off",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=_CLOSE_SECONDS,
            )
        )
        self._connections = connections
        self._connections.setblocking(False)
        self._all_handed = asyncio.Event()
        self._opening: set[asyncio.Task[object]] = set()

    async def answer(self) -> None:
        """Runs until `should_exit`, then ends in order; at once where `force_exit` is set."""
        loop = asyncio.get_running_loop()
        self.config.load()
        loop.add_reader(self._connections.fileno(), self._handed)
        try:
            await self.serve([])
        finally:
            loop.remove_reader(self._connections.fileno())

    def ask_to_close(self) -> None:
        """From here on each answer that begins asks its client to come back by another connection, and ends this one.
        Idle connections stay: a request may be on its way over them."""
        if _CLOSE in self.config.encoded_headers:
            return
        self.config.encoded_headers.append(_CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, _CLOSE]
        for connection in self.server_state.connections:
            running: Any = getattr(connection, "cycle", None)  # it has the headers of when it came
            if running is not None and not running.response_started:
                running.keep_alive = False

    async def finished(self) -> None:
        """Asks clients to come back by another connection, and returns when all of this process's are gone.

        Connections that the server is handing over meanwhile are taken, and answered, too.
        """
        self.ask_to_close()
        await self._all_handed.wait()
        loop = asyncio.get_running_loop()
        ends = loop.time() + _CLOSE_SECONDS
        while self.server_state.connections or self._opening:
            await asyncio.sleep(0.05)
            if loop.time() > ends:
                for connection in list(self.server_state.connections):
                    connection.shutdown()  # at once where it is idle, else after its answer

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are not uvicorn's here: it would end a drained process by the one it drained for."""
        yield

    def _handed(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                mark, descriptors, _, _ = socket.recv_fds(self._connections, 1, 1)
            except BlockingIOError:
                return
            if not mark:
                loop.remove_reader(self._connections.fileno())
                self._all_handed.set()
                return
            for descriptor in descriptors:
                opening = asyncio.ensure_future(self._open(socket.socket(fileno=descriptor)))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        made: Any = self.config.http_protocol_class
        protocol = functools.partial(made, config=self.config, server_state=self.server_state, app_state={})
        with contextlib.suppress(OSError):  # it has gone again
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)
