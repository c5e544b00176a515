"""The shape in which a generation is told: a route's own words for it, whole and as events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from softmux.api.amounts import Usage
from softmux.api.choice import Choice, Piece
from softmux.api.generation import Generation
from softmux.errors import SoftmuxError


class Events(Protocol):
    """The events of one streamed reply."""

    def news(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        """What is new in a choice, as events; nothing where there is nothing to tell. `usage` comes with the last."""


class Shape(Protocol):
    """Of the replies of one request."""

    @property
    def id_prefix(self) -> str:
        """Of replies' ids."""

    def whole(self, generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The reply, of each choice's text in one piece, in order."""

    def events(self, generation: Generation) -> Events: ...

    def in_its_words(self, error: SoftmuxError) -> SoftmuxError:
        """An error with the route's own name of what is wrong."""
