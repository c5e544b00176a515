"""How replies end: all that is sent before anything is counted, and counted as what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from softmux.api.answering import WholeReply, _streamed
from softmux.api.sse import DONE
from softmux.errors import EngineDown


class Running:
    """What replies know of a `Generation`."""

    def __init__(self, name: str, told: list[str], fails: Exception | None = None) -> None:
        self.name, self.told, self.fails = name, told, fails
        self.charge = SimpleNamespace(headers={"x-limit": "1"})
        self.choices = [SimpleNamespace(index=0)]
        self.usage = None
        self.left, self.outcome = False, "gone"
        self.noticed = asyncio.Event()

    async def pieces(self) -> AsyncIterator[Any]:
        yield [(self.choices[0], SimpleNamespace(finish_reason=None))]
        if self.fails is not None:
            raise self.fails
        yield [(self.choices[0], SimpleNamespace(finish_reason="length"))]

    def settle(self) -> None: ...

    def leave(self) -> None:
        self.left = True
        self.noticed.set()

    def end(self) -> None:
        self.told.append(f"{self.name} {'gone' if self.left else self.outcome}")


def replies(told: list[str], *, fails: bool = False) -> None:
    async def one(name: str) -> None:
        async def send(message: Any) -> None:
            if fails:
                raise ConnectionError("the client is gone")
            if message["type"] == "http.response.body":
                told.append(f"{name} sent")

        running: Any = Running(name, told)
        await WholeReply(b"{}", running)({"type": "http"}, Any, send)

    async def story() -> None:
        await asyncio.gather(one("a"), one("b"), return_exceptions=fails)

    asyncio.run(story())


def test_all_are_on_their_way_before_any_is_counted() -> None:
    told: list[str] = []
    replies(told)
    assert told == ["a sent", "b sent", "a ok", "b ok"]


def test_one_that_cannot_be_sent_counts_as_gone() -> None:
    told: list[str] = []
    replies(told, fails=True)
    assert told == ["a gone", "b gone"]


def test_its_limits_are_among_its_headers() -> None:
    running: Any = Running("a", [])
    reply = WholeReply(b"{}", running)
    assert (reply.headers["x-limit"], reply.headers["content-type"]) == ("1", "application/json")


def streamed(*, fails: Exception | None = None, at_the_last: str = "taken") -> list[str]:
    """What was told while a stream was sent: each write, and its end. `at_the_last`: what its client does with the last
    event: it is `lost`, or the client `leaves` while the event is on its way."""
    told: list[str] = []
    running: Any = Running("a", told, fails)
    shape: Any = SimpleNamespace(
        events=lambda _: SimpleNamespace(
            news=lambda _choice, piece, _usage: b"last" if piece.finish_reason else b"one"
        ),
        in_its_words=lambda error: error,
    )

    async def story() -> None:
        leaving = asyncio.Event()

        async def receive() -> Any:
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] != "http.response.body":
                return
            if DONE in message["body"] and at_the_last == "lost":
                raise ConnectionError("the client is gone")
            told.append("end" if not message["more_body"] else message["body"].split(b"data")[0].decode() or "error")
            if DONE in message["body"] and at_the_last == "leaves":
                leaving.set()
                await running.noticed.wait()

        request: Any = SimpleNamespace(receive=receive)
        asked: Any = SimpleNamespace(shape=shape)
        answer = await _streamed(request, running, asked)
        await answer({"type": "http"}, receive, send)

    if at_the_last == "lost":
        with pytest.raises(ConnectionError):
            asyncio.run(story())
    else:
        asyncio.run(story())
    return told


def test_a_stream_is_counted_once_all_of_it_is_on_its_way() -> None:
    assert streamed() == ["one", "last", "end", "a ok"]


def test_a_stream_whose_last_event_nobody_takes_counts_as_gone() -> None:
    assert streamed(at_the_last="lost") == ["one", "a gone"]
    assert streamed(at_the_last="leaves") == ["one", "last", "end", "a gone"]


def test_a_stream_that_fails_counts_as_its_error() -> None:
    down = EngineDown("The engine died; try again.", retry_after=1.0)
    assert streamed(fails=down) == ["one", "error", "end", "a engine_down"]
