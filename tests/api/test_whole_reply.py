"""Replies that end in the same turn of the event loop."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from softmux.api.answering import WholeReply


def generation(name: str, told: list[str]) -> Any:
    metrics = SimpleNamespace(request=lambda label, outcome, seconds: told.append(f"{label} {outcome}"))
    return SimpleNamespace(
        label=name,
        charge=SimpleNamespace(headers={"x-limit": "1"}),
        services=SimpleNamespace(metrics=metrics),
        close=lambda: told.append(f"{name} closed"),
    )


def replies(told: list[str], *, fails: bool = False) -> None:
    async def one(name: str) -> None:
        async def send(message: Any) -> None:
            if fails:
                raise ConnectionError("the client is gone")
            if message["type"] == "http.response.body":
                told.append(f"{name} sent")

        await WholeReply(b"{}", generation(name, told), 0.0)({"type": "http"}, Any, send)

    async def story() -> None:
        await asyncio.gather(one("a"), one("b"), return_exceptions=fails)

    asyncio.run(story())


def test_all_are_on_their_way_before_any_is_counted() -> None:
    told: list[str] = []
    replies(told)
    assert told == ["a sent", "b sent", "a closed", "a ok", "b closed", "b ok"]


def test_one_that_cannot_be_sent_gives_back_what_it_holds() -> None:
    told: list[str] = []
    replies(told, fails=True)
    assert told == ["a closed", "a ok", "b closed", "b ok"]


def test_its_limits_are_among_its_headers() -> None:
    reply = WholeReply(b"{}", generation("a", []), 0.0)
    assert (reply.headers["x-limit"], reply.headers["content-type"]) == ("1", "application/json")
