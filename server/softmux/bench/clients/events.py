"""Server-sent events as softmux and OpenAI's API send them, taken apart as their bytes come."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChoicePart(msgspec.Struct):
    text: str | None = ""
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class Trouble(msgspec.Struct):
    """The `error` object. OpenAI's servers put a name, a number or nothing into `code`."""

    code: str | int | None = None
    type: str | None = None


class Reply(msgspec.Struct):
    """What the bench reads of a whole reply, or of one event of a streamed one."""

    choices: list[ChoicePart] = []
    usage: Usage | None = None
    error: Trouble | None = None


_DECODE = msgspec.json.Decoder(Reply).decode
DONE = b"[DONE]"


def read_reply(data: bytes) -> Reply:
    """Raises `msgspec.MsgspecError` where it is no such reply."""
    return _DECODE(data)


class EventReader:
    """Cuts a stream's bytes into the data of its events, wherever the pieces end."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event line that is complete now, `[DONE]` included."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        return [line[5:].strip() for line in lines if line.startswith(b"data:")]
