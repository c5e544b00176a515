"""Templates: text with learned tokens and named slots at any place, as in `{p:2} The capital of {country} {p:2} is`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from softmux.errors import InvalidAdapter
from softmux.formats.json_file import shown
from softmux.types import KV_METHODS, Method

_TOKEN = re.compile(
    r"(?P<open>\{\{)|(?P<close>\}\})|\{p:(?P<learned>[0-9]{1,6})\}|\{(?P<slot>[A-Za-z_][A-Za-z0-9_]*)\}"
    r"|(?P<text>[^{}]+)"
)


@dataclass(frozen=True, slots=True)
class Learned:
    """The next `count` learned tokens."""

    count: int


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Slot:
    name: str


Piece = Learned | Text | Slot


@dataclass(frozen=True, slots=True)
class Template:
    """`pieces` in order, neighbouring texts joined; `slots` without repeats, in order of first use."""

    pieces: tuple[Piece, ...]
    slots: tuple[str, ...]
    virtual_tokens: int

    @classmethod
    def parse(cls, text: str) -> Template:
        """Reads `{p:N}`, `{name}`, `{{` and `}}`; everything else is text. Raises `InvalidAdapter`."""
        pieces: list[Piece] = []
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise _invalid(
                    f"“{shown(text[position : position + 24])}” at character {position} is neither {{p:N}} (N learned "
                    "tokens) nor {name} (a slot, letters, digits and _); write {{ and }} for braces"
                )
            pieces.append(_piece(match))
            position = match.end()
        joined = _joined(pieces)
        if not any(isinstance(piece, Text | Slot) for piece in joined):
            raise _invalid("it holds neither text nor a slot, so a request would have nothing to say")
        return cls(
            pieces=joined,
            slots=tuple(dict.fromkeys(piece.name for piece in joined if isinstance(piece, Slot))),
            virtual_tokens=sum(piece.count for piece in joined if isinstance(piece, Learned)),
        )

    def runs(self, values: Mapping[str, str]) -> tuple[Learned | Text, ...]:
        """The template with `values` in its slots: learned tokens, and between them each run of text in one piece.

        A value is text, whatever it looks like. Every slot must have a value.
        """
        return tuple(
            piece
            for piece in _joined(
                [Text(values[piece.name]) if isinstance(piece, Slot) else piece for piece in self.pieces]
            )
            if not isinstance(piece, Slot)
        )

    def check(self, method: Method, virtual_tokens: int) -> None:
        """Raises `InvalidAdapter` unless the template can serve an adapter of `method` with `virtual_tokens`."""
        if method in KV_METHODS:
            if self.virtual_tokens:
                raise _invalid("a prefix always leads, so its template holds text and slots but no {p:N}")
        elif self.virtual_tokens != virtual_tokens:
            raise _invalid(
                f"its {{p:N}} add up to {self.virtual_tokens} learned tokens, and the adapter has {virtual_tokens}"
            )


def _piece(match: re.Match[str]) -> Piece:
    if match["open"] or match["close"]:
        return Text(match[0][0])
    if match["learned"]:
        count = int(match["learned"])
        if count == 0:
            raise _invalid("{p:0} stands for no learned token; leave it out")
        return Learned(count)
    return Slot(match["slot"]) if match["slot"] else Text(match["text"])


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """Neighbouring texts made one, and neighbouring learned tokens."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Text) and isinstance(last, Text):
            joined[-1] = Text(last.text + piece.text)
        elif isinstance(piece, Learned) and isinstance(last, Learned):
            joined[-1] = Learned(last.count + piece.count)
        else:
            joined.append(piece)
    return tuple(joined)


def _invalid(reason: str) -> InvalidAdapter:
    return InvalidAdapter(f"The template can't be used: {reason}.", param="softmux.json: template")
