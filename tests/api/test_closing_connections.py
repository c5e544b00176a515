"""Clients of a process that is to end are asked to come back by another connection, and lose no answer."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from softmux.api.http import HttpServer


def test_answers_that_begin_from_then_on_close_their_connection_and_idle_ones_stay() -> None:
    asyncio.run(_asked_to_close())


async def _asked_to_close() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            begun.set()
            await go_on.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    handed, taken = socket.socketpair()
    server = HttpServer(app, taken)
    answering = asyncio.create_task(server.answer())
    clients = [await _connect(handed) for _ in range(2)]
    (_, slow), (_, idle) = clients
    try:
        idle.write(_get("/quick"))
        assert "connection: close" not in await _head(clients[1])
        slow.write(_get("/slow"))
        await begun.wait()
        server.ask_to_close()
        server.ask_to_close()  # by the drain, and by a signal to the process itself
        go_on.set()
        assert (await _head(clients[0])).count("connection: close") == 1
        assert await clients[0][0].read() == b""
        idle.write(_get("/quick"))
        assert (await _head(clients[1])).count("connection: close") == 1
        assert await clients[1][0].read() == b""
    finally:
        for _, writer in clients:
            writer.close()
        server.should_exit = True
        await answering
        handed.close()
        taken.close()


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _connect(handed: socket.socket) -> Client:
    """A connection to the server, which is handed its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = await asyncio.open_connection(*listening.getsockname())
        accepted, _ = listening.accept()
        with accepted:
            socket.send_fds(handed, [b"\0"], [accepted.fileno()])
    return client


def _get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: softmux\r\n\r\n".encode()


async def _head(client: Client) -> str:
    async with asyncio.timeout(60):
        return (await client[0].readuntil(b"\r\n\r\n")).decode().lower()
