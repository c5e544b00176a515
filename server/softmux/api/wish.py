"""What a request asks of the engine, and what it begins with: the same by whatever route it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from softmux.errors import InvalidRequest
from softmux.types import SamplingParams

Prompt = str | list[int] | None
"""Text, token ids, or nothing where variables say it all."""


@dataclass(frozen=True, slots=True)
class Wish:
    """How tokens are chosen, how many, and when to stop."""

    sampling: SamplingParams
    samples: int = 1
    """Of each prompt."""
    stops: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    priority: int = 0
    to_the_end: bool = False
    """New tokens are bounded by the context alone, not by `sampling.max_tokens`."""

    def check(self) -> None:
        """Raises `InvalidRequest` where fewer tokens are wished at most than at least."""
        sampling = self.sampling
        if sampling.min_tokens > sampling.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({sampling.min_tokens}) is more than max_tokens ({sampling.max_tokens}).",
                param="min_tokens",
            )


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation, as chat templates take it."""

    messages: list[dict[str, Any]]
    fills_slot: bool = False
    """Of a task with a template that has one slot, a chat of one question fills it."""

    tools: list[dict[str, Any]] | None = None
    """What the reply may call, in OpenAI's words."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Of the chat template's own."""

    @property
    def characters(self) -> int:
        """About so many: calls and tools are told as JSON."""
        said = sum(len(turn["content"]) for turn in self.messages)
        calls = [turn["tool_calls"] for turn in self.messages if "tool_calls" in turn]
        return said + (len(msgspec.json.encode((calls, self.tools))) if calls or self.tools else 0)

    @property
    def slot_value(self) -> str | None:
        """What the user said, where that is all there is, and it may fill a slot."""
        if not self.fills_slot:
            return None
        [first, *more] = self.messages
        return None if more or first["role"] != "user" else str(first["content"])


@dataclass(frozen=True, slots=True)
class Given:
    """What is to be gone on from: prompts, or a chat."""

    prompts: Sequence[Prompt]
    chat: Chat | None = None
    variables: Mapping[str, str] | None = None
