"""A server that does nothing but answer: what the client itself can read is measured on it, without a model.

It speaks softmux's route and OpenAI's. A reply's tokens come one an event, `gap` seconds apart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

_HEAD = {
    "id": "gen-0123456789abcdef01234567",
    "object": "generation.chunk",
    "created": 1790000000,
    "model": "canned",
    "adapter": {"task": "canned", "version": 1, "digest": "sha256:" + "0" * 64, "method": "prompt_tuning"},
}
_encode = msgspec.json.encode


def canned_app(gap: float) -> Callable[..., Awaitable[None]]:
    """An ASGI application."""
    plain = b"data: " + _encode(_HEAD | {"choices": [_choice(" word", None)]}) + b"\n\n"

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        asked = msgspec.json.decode(body or b"{}")
        tokens = int(asked.get("max_tokens", 16))
        usage = {"prompt_tokens": len(asked.get("prompt", ())), "completion_tokens": tokens}
        last = _HEAD | {"choices": [_choice(" word", "length")], "usage": usage}
        if not asked.get("stream"):
            await _start(send, b"application/json")
            whole = last | {"object": "generation", "choices": [_choice(" word" * tokens, "length")]}
            await send({"type": "http.response.body", "body": _encode(whole)})
            return
        await _start(send, b"text/event-stream")
        for _ in range(tokens - 1):
            await send({"type": "http.response.body", "body": plain, "more_body": True})
            await asyncio.sleep(gap)
        end = b"data: " + _encode(last) + b"\n\ndata: [DONE]\n\n"
        await send({"type": "http.response.body", "body": end})

    return app


async def _start(send: Any, kind: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})


def _choice(text: str, reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": reason, "logprobs": None}
