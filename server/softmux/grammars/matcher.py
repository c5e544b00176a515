"""How far a sequence has come in its grammar."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from llguidance import LLMatcher

from softmux.grammars.compiler import said


@dataclass(slots=True)
class Guide:
    """`taken` counts the sequence's generated tokens that the matcher has followed. It never goes back: what is
    generated stays, whatever becomes of the row."""

    matcher: LLMatcher
    words: int
    """Of its masks, 32 tokens each."""
    taken: int = 0

    def follow(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.matcher.consume_token(token)
            self.taken += 1

    @property
    def stuck(self) -> str:
        """Why no token can follow; empty where one can."""
        return said(self.matcher.get_error()) if self.matcher.is_error() else ""
