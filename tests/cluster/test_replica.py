"""How a replica passes on what its server answers, and that its server ends with it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'softmux[ray]'")

from softmux.cluster import leash
from softmux.cluster.call import Call, Head, Lost
from softmux.cluster.replica import Replica

CALL = Call("POST", "/v1/generate", "task=mood", ((b"host", b"api.example"), (b"connection", b"close")), b"{}")


def answered(server: Callable[[httpx.Request], httpx.Response], call: Call = CALL) -> list[Any]:
    """Of a replica whose server is a function."""
    replica = Replica.__new__(Replica)
    replica._name = "r1"
    replica._http = httpx.AsyncClient(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(server))

    async def collect() -> list[Any]:
        return [part async for part in replica.answer(call)]

    return asyncio.run(collect())


def test_an_answer_comes_as_the_server_gave_it_less_what_is_of_one_connection() -> None:
    seen: list[httpx.Request] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"ye"
        yield b"s"

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        headers = {"X-Request-Id": "7", "date": "then", "connection": "close"}
        return httpx.Response(201, headers=headers, content=body())

    head, *parts = answered(server)
    assert head == Head(201, ((b"x-request-id", b"7"),))
    assert parts == [b"ye", b"s"], "each as soon as it comes"
    assert (seen[0].method, seen[0].url.raw_path, seen[0].content) == ("POST", b"/v1/generate?task=mood", b"{}")
    assert seen[0].headers["host"] == "api.example", "a server without keys must see by which name it was called"
    assert seen[0].headers["connection"] != "close"


def test_an_engine_that_is_down_is_another_replicas_work_and_one_that_is_full_is_not() -> None:
    def saying(code: str, **more: bool) -> Callable[[httpx.Request], httpx.Response]:
        text = json.dumps({"error": {"code": code, **more}}, separators=(",", ":")).encode()

        async def body() -> AsyncIterator[bytes]:
            yield text

        return lambda request: httpx.Response(503, headers={"content-length": f"{len(text)}"}, content=body())

    assert answered(saying("engine_down")) == [Lost("r1")]
    assert answered(saying("engine_down", begun=True)) == [Lost("r1")]
    assert answered(saying("engine_down", begun=False)) == [Lost("r1", reached=False)]
    [head] = answered(saying("overloaded"))
    assert head.status == 503
    assert b"overloaded" in head.body


@pytest.mark.parametrize(
    ("error", "reached"), [(httpx.ConnectError, False), (httpx.ConnectTimeout, False), (httpx.ReadError, True)]
)
def test_a_server_that_is_gone_is_lost(error: type[httpx.TransportError], reached: bool) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        raise error("gone", request=request)

    assert answered(server) == [Lost("r1", reached)]


def broken_off(**headers: str) -> Callable[[httpx.Request], httpx.Response]:
    async def body() -> AsyncIterator[bytes]:
        yield b"ha"
        raise httpx.ReadError("reset")

    return lambda request: httpx.Response(200, headers=headers, content=body())


def test_an_answer_that_is_no_stream_is_there_in_one_piece_or_lost() -> None:
    assert answered(broken_off(**{"content-length": "4"})) == [Lost("r1")]
    with pytest.raises(httpx.ReadError):
        answered(broken_off())
    with pytest.raises(httpx.ReadError):
        answered(broken_off(**{"content-length": f"{1 << 30}"}))


def test_a_server_that_hangs_holds_up_no_answer() -> None:
    """Ray asks for a replica's health on the event loop on which its answers are passed on."""
    answering = threading.Event()

    class Hanging:
        def live(self) -> bool:
            return answering.wait(30)

        def stop(self, seconds: float) -> None:
            pass

    async def run() -> None:
        replica = Replica.__new__(Replica)
        replica._server, replica._drain_seconds = Hanging(), 0  # type: ignore[assignment]
        replica._data = tempfile.TemporaryDirectory()
        asked = asyncio.ensure_future(replica.check_health())
        await asyncio.sleep(0)
        answering.set()
        await asked

    asyncio.run(run())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a child with its parent")
def test_the_server_is_told_to_end_when_its_actor_is_killed(tmp_path: Path) -> None:
    ended, begun = tmp_path / "ended", tmp_path / "begun"
    child = (
        "import pathlib, signal, sys\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(ended)!r}).touch(), sys.exit()))\n"
        f"pathlib.Path({str(begun)!r}).touch()\n"
        "signal.pause()\n"
    )
    command = [sys.executable, leash.__file__, "PARENT", sys.executable, "-c", child]
    parent = f"import os, subprocess; c = {command!r}; c[2] = str(os.getpid()); subprocess.Popen(c).wait()"
    process = subprocess.Popen([sys.executable, "-c", parent])
    _until(begun.exists)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _until(ended.exists)


def _until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.02)
