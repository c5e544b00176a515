"""Clients that hold on, send too much or send nonsense: each is told or cut off, and others notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest
import uvicorn

from softmux.api import protocol
from softmux.api.protocol import MOST_HEAD_BYTES, BoundedProtocol
from support.served import Served

GENERATE = "/v1/generate"


def _exchange(server: Served, data: bytes, seconds: float = 20) -> tuple[int, dict[str, Any] | None]:
    """What the server answers to raw bytes: the status and the JSON body; it closes, or keeps the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused while we were sending
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
                head, _, body = answer.partition(b"\r\n\r\n")
                length = [line for line in head.lower().splitlines() if line.startswith(b"content-length:")]
                if length and len(body) >= int(length[0].split(b":")[1]):
                    break
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1]) if head else 0
    return status, json.loads(body) if body.startswith(b"{") else None


def _post(body: bytes, *headers: str) -> bytes:
    lines = [f"POST {GENERATE} HTTP/1.1", "host: x", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _goes_on(server: Served) -> bool:
    return server.http.post(GENERATE, json={"prompt": "still here", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x01\x02\x03\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/generate HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
        b"POST /v1/generate HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nbad header: x\r\n\r\n",
        b"GET /v1/model HTTP/1.1\r\nx: a\x00b\r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_http_is_told_so(server: Served, data: bytes) -> None:
    status, body = _exchange(server, data)
    assert status == 400
    assert body is not None
    assert body["error"]["code"] == "bad_request"
    assert _goes_on(server)


@pytest.mark.parametrize("size", [MOST_HEAD_BYTES + 1, 3 << 20])
@pytest.mark.parametrize("shape", ["one header", "many headers", "the line", "never ending"])
def test_huge_heads_are_refused(server: Served, size: int, shape: str) -> None:
    head = {
        "one header": f"GET /v1/model HTTP/1.1\r\nhost: x\r\nx: {'a' * size}\r\n\r\n",
        "many headers": "GET /v1/model HTTP/1.1\r\nhost: x\r\n" + "x: aaaaaaa\r\n" * (size // 9) + "\r\n",
        "the line": f"GET /v1/model?{'a' * size} HTTP/1.1\r\nhost: x\r\n\r\n",
        "never ending": f"GET /v1/model HTTP/1.1\r\nhost: x\r\nx: {'a' * size}",
    }[shape]
    status, body = _exchange(server, head.encode())
    assert status in (431, 0), "refused; or cut off while it was still sending"
    if body is not None:
        assert "64" in body["error"]["message"] or "65,536" in body["error"]["message"]
    assert _goes_on(server)


def test_a_head_of_an_ordinary_size_is_none_of_that(server: Served) -> None:
    status, _ = _exchange(server, f"GET /v1/model HTTP/1.1\r\nhost: x\r\nx: {'a' * 30000}\r\n\r\n".encode())
    assert status == 200


def test_who_sends_a_byte_now_and_then_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, where the limit can be short. A connection without a byte is closed without a word."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    monkeypatch.setattr(protocol, "SILENT_SECONDS", 1.0)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def dribble(port: int, data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.02)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    async def story() -> None:
        config = uvicorn.Config(app, http=BoundedProtocol, log_config=None, lifespan="off", timeout_keep_alive=60)
        server = uvicorn.Server(config)
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            port = listening.getsockname()[1]
            serving = asyncio.create_task(server.serve([listening]))
            while not server.started:  # noqa: ASYNC110 - uvicorn's own flag
                await asyncio.sleep(0.01)
            slow, silent, second = await asyncio.gather(
                dribble(port, b"GET / HTT"),
                dribble(port, b""),
                _second_request(port),
            )
            assert slow.startswith(b"HTTP/1.1 408 ")
            assert b"deadline_exceeded" in slow
            assert silent == b""
            assert second.startswith(b"HTTP/1.1 408 ")
            monkeypatch.setattr(protocol, "SILENT_SECONDS", 60.0)  # who comes late, as one of thousands, is answered
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.sleep(2 * protocol.HEAD_SECONDS)
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.close()
            server.should_exit = True
            await serving

    async def _second_request(port: int) -> bytes:
        """A whole request, then one that does not end, on the same connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        await reader.readexactly(2)
        writer.write(b"GET / HTT")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        return answer

    asyncio.run(story())


def test_many_that_hold_on_keep_nobody_waiting(server: Served) -> None:
    held = []
    begun = (b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-le", _post(b'{"pro', "content-length: 99"))
    try:
        for number in range(300):
            connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            connection.sendall(begun[number % 2])
            held.append(connection)
        assert _goes_on(server)
        assert server.http.get("/health/ready").status_code == 200
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b'{"prompt": "a", "max_tokens": 1, "stop": ' + json.dumps(["x"] * 100).encode() + b"}", {422}),
        (b'{"prompt": "a", "max_tokens": 9, "stop": ["(a+)+$", "a|b|c", "[^", "\\\\", ".*"]}', {200}),
        (b'{"prompt": "a", "max_tokens": 9, "stop": "' + b"a" * 2000 + b'"}', {422}),
        (b'{"prompt": "\xff\xfe"}', {400}),
        (b'{"prompt": "a", "temperature": NaN}', {400, 422}),
        (b'{"prompt": "a", "temperature": 1e400}', {400, 422}),
        (b'{"prompt": ' + b"[" * 50000 + b"]" * 50000 + b"}", {400, 422}),
        (b'{"prompt": "' + b"a" * 300_000 + b'"}', {413}),
        (b'{"prompt": "' + b"\\u0000" * 100 + b'", "max_tokens": 1}', {200, 422}),
        (b'{"prompt": ' + json.dumps(list(range(3, 400)) * 400).encode() + b"}", {400, 413}),
    ],
    ids=["100 stops", "regex-like stops", "a long stop", "invalid UTF-8", "NaN", "1e400", "deep", "413", "NUL", "ids"],
)
def test_bodies_that_ask_too_much(server: Served, body: bytes, statuses: set[int]) -> None:
    answer = server.http.post(GENERATE, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in statuses, answer.text[:300]
    if answer.status_code != 200:
        assert len(answer.json()["error"]["message"]) > 15
    assert _goes_on(server)
