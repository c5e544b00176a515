"""Log probabilities of tokens chosen, and the two shapes that OpenAI's routes tell them in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from softmux.api.tokenizer import Tokenizer
from softmux.types import TokenLogprobs

_LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


class Logged(msgspec.Struct, frozen=True):
    """A token that was chosen. `offset` is where its text begins, in the choice's characters."""

    token: int
    values: TokenLogprobs
    offset: int

    @property
    def chosen(self) -> float:
        return max(self.values.chosen, _LEAST_LOGPROB)

    def best(self) -> Iterator[tuple[int, float]]:
        """The likeliest tokens, likeliest first."""
        for token, value in zip(self.values.top_ids, self.values.top_logprobs, strict=True):
            yield token, max(value, _LEAST_LOGPROB)


def as_lists(logged: Sequence[Logged], tokenizer: Tokenizer) -> dict[str, Any]:
    """Completions' shape: a list for each kind of value. The chosen token is among the likeliest, beyond their number
    where it is none of them."""
    name = tokenizer.token_text
    return {
        "tokens": [name(one.token) for one in logged],
        "token_logprobs": [one.chosen for one in logged],
        "top_logprobs": [
            {**{name(token): value for token, value in one.best()}, name(one.token): one.chosen} for one in logged
        ],
        "text_offset": [one.offset for one in logged],
    }


def as_content(logged: Sequence[Logged], tokenizer: Tokenizer) -> dict[str, Any]:
    """Chat completions' shape: an object for each token."""

    def told(token: int, value: float) -> dict[str, Any]:
        return {
            "token": tokenizer.token_text(token),
            "logprob": value,
            "bytes": list(tokenizer.token_bytes(token)),
        }

    return {
        "content": [
            {**told(one.token, one.chosen), "top_logprobs": [told(token, value) for token, value in one.best()]}
            for one in logged
        ],
        "refusal": None,
    }
