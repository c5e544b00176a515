"""What a request comes to, in tokens."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Usage:
    """Tokens of a request. A prompt counts once, however many samples are drawn of it."""

    prompt_tokens: int = 0
    virtual_tokens: int = 0
    cached_tokens: int = 0
    cached_prompt_tokens: int = 0
    """Of `cached_tokens` those of the prompts alone."""
    completion_tokens: int = 0

    def json(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "virtual_tokens": self.virtual_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass(frozen=True, slots=True)
class Input:
    """A prompt as the engine has it: how many tokens are its own, and where learned ones lie among them."""

    own: int
    learned: tuple[int, ...]

    @classmethod
    def of(cls, tokens: Sequence[int]) -> Input:
        learned = tuple([place for place, token in enumerate(tokens) if token < 0])
        return cls(len(tokens) - len(learned), learned)

    def own_of(self, first: int) -> int:
        """How many of its first so many tokens are its own."""
        return first - bisect_left(self.learned, first)
