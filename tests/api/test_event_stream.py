from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from softmux.api.sse import EventStream


async def _nothing() -> Any:
    raise AssertionError("nobody listens")


@pytest.mark.parametrize("fails_at", ["http.response.start", "http.response.body", None])
def test_whatever_fails_the_events_are_ended(fails_at: str | None) -> None:
    """What an answer holds, as its tenant's tokens in flight, is given back when its events end."""
    ended: list[str] = []
    sent: list[bytes] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append("ended")

    async def send(message: Any) -> None:
        if message["type"] == fails_at:
            raise ConnectionError("the client is gone")
        sent.append(message.get("body", b""))

    async def story() -> None:
        answer = EventStream(events(), {"x-limit": "1"})({"type": "http"}, _nothing, send)
        if fails_at is None:
            await answer
        else:
            with pytest.raises(ConnectionError):
                await answer
        assert ended == ["ended"]

    asyncio.run(story())
    if fails_at is None:
        assert sent == [b"", b"one", b"two", b""]
