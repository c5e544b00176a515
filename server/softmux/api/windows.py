"""A text's tokens with their places in it, cut into overlapping windows where it is long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from softmux.errors import ContextTooLong, InvalidRequest
from softmux.formats.layout import Encoder, special_tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of the text itself: its id, its characters `start … end`, and the number of its word, if it has one."""

    id: int
    start: int
    end: int
    word: int | None


@dataclass(frozen=True, slots=True)
class Window:
    """Ids to send, special ones included. Those from `lead` on are `pieces[first : first + count]` of the text."""

    ids: tuple[int, ...]
    lead: int
    first: int
    count: int

    def centrality(self, piece: int) -> int:
        """How many tokens are between that piece and the nearer end of the window."""
        return min(piece - self.first, self.first + self.count - 1 - piece)


class Splitter(Encoder, Protocol):
    """A tokenizer that says where its tokens lie."""

    def pieces(self, text: str) -> list[Piece]:
        """The text's own tokens, without special ones."""


def windows(
    tokenizer: Splitter, text: str, *, most: int, stride: int | None, at_most: int
) -> tuple[list[Piece], list[Window]]:
    """The text's tokens, and the windows of at most `most` ids that cover them; neighbours share `stride` tokens.

    Raises `InvalidRequest` for a text without tokens, or one of more than `at_most` windows, and `ContextTooLong` for
    one that is too long without a `stride`.
    """
    pieces = tokenizer.pieces(text)
    if not pieces:
        raise InvalidRequest("The input holds no token; give it at least one.", param="input")
    leading, trailing = special_tokens(tokenizer)
    room, count = most - len(leading) - len(trailing), len(pieces)
    if count > room:
        if stride is None:
            raise ContextTooLong(
                f"The input has {count} tokens, and this task takes {max(room, 0)} at once; shorten it, or send "
                "`stride`, the tokens that neighbouring windows share.",
                param="input",
            )
        if stride >= room:
            raise InvalidRequest(
                f"stride is {stride}, and a window has {max(room, 0)} tokens; lower it.", param="stride"
            )
    firsts = range(0, count - (stride or 0), room - (stride or 0)) if count > room else range(1)
    if len(firsts) > at_most:  # before they are made: a large stride makes a window of every token
        raise InvalidRequest(
            f"With stride {stride} the input has {len(firsts)} windows of {room} tokens, more than this server takes "
            f"at once ({at_most}); lower it, or send less text.",
            param="stride",
        )
    found = []
    for first in firsts:
        ids = [piece.id for piece in pieces[first : first + room]]
        found.append(Window((*leading, *ids, *trailing), len(leading), first, len(ids)))
    return pieces, found
