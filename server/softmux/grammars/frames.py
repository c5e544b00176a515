"""What travels to and from a process that tries grammars: four bytes of length, and that many of msgpack."""

from __future__ import annotations

from typing import BinaryIO

import msgspec

HEAD = 4


class Vocabulary(msgspec.Struct, frozen=True):
    """As `GrammarCompiler` takes it."""

    tokenizer: str
    size: int
    ends: tuple[int, ...]


def frame(value: object) -> bytes:
    body = msgspec.msgpack.encode(value)
    return len(body).to_bytes(HEAD, "little") + body


def read(stream: BinaryIO) -> bytes | None:
    """The next frame's value, not decoded; None at the end."""
    head = stream.read(HEAD)
    return stream.read(int.from_bytes(head, "little")) if len(head) == HEAD else None
