"""The shapes in which OpenAI's routes tell of a generation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from softmux.api.amounts import Usage
from softmux.api.choice import Choice, Piece
from softmux.api.generation import Generation
from softmux.api.logprobs import as_content, as_lists
from softmux.api.openai.models import in_its_words
from softmux.api.openai.tools import Call, CallReader
from softmux.api.sse import Chunks
from softmux.api.tokenizer import Tokenizer
from softmux.errors import SoftmuxError


@dataclass(frozen=True, slots=True)
class _Asked:
    """`model` is the name that the client gave."""

    model: str
    token_ids: bool
    include_usage: bool
    tells_usage: bool = False
    """In every event, what was used so far."""

    def in_its_words(self, error: SoftmuxError) -> SoftmuxError:
        return in_its_words(error)

    def head(self, generation: Generation, kind: str) -> dict[str, Any]:
        """What a reply and its chunks have in common."""
        return {
            "id": generation.id,
            "object": kind,
            "created": generation.created,
            "model": self.model,
            "system_fingerprint": generation.fingerprint,
            **generation.told,
        }

    def ended(self, index: int, told: dict[str, Any], piece: Piece) -> dict[str, Any]:
        """A choice, of which `told` is the route's own part."""
        shown = {"index": index, **told, "finish_reason": piece.finish_reason}
        return {**shown, "token_ids": piece.token_ids} if self.token_ids else shown


@dataclass(frozen=True, slots=True)
class CompletionShape(_Asked):
    """`POST /v1/completions`."""

    @property
    def id_prefix(self) -> str:
        return "cmpl-"

    def whole(self, generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
        choices = [self.choice(index, piece, generation.tokenizer) for index, piece in enumerate(pieces)]
        head = self.head(generation, "text_completion")
        return {**head, "choices": choices, "usage": usage_json(generation.usage)}

    def events(self, generation: Generation) -> CompletionEvents:
        return CompletionEvents(self, generation, Chunks(self.head(generation, "text_completion")))

    def choice(self, index: int, piece: Piece, tokenizer: Tokenizer) -> dict[str, Any]:
        logprobs = None if piece.logprobs is None else as_lists(piece.logprobs, tokenizer)
        return self.ended(index, {"text": piece.text, "logprobs": logprobs}, piece)


@dataclass(frozen=True, slots=True)
class CompletionEvents:
    shape: CompletionShape
    generation: Generation
    chunks: Chunks

    def news(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        if piece.finish_reason is None and not _shows(piece, self.shape):
            return b""
        shown = self.shape.choice(choice.index, piece, self.generation.tokenizer)
        told = [_chunk(self.chunks, self.shape, shown, self.generation)]
        return b"".join(told + _last(self.chunks, self.shape, usage))


@dataclass(frozen=True, slots=True)
class ChatShape(_Asked):
    """`POST /v1/chat/completions`."""

    may_call: bool = False
    """Whether calls of tools are looked for."""
    one_call: bool = False
    """Whether a reply has one call at most."""

    @property
    def id_prefix(self) -> str:
        return "chatcmpl-"

    def whole(self, generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
        choices = [
            self.choice(index, *self._message(generation, index, piece), generation.tokenizer)
            for index, piece in enumerate(pieces)
        ]
        head = self.head(generation, "chat.completion")
        return {**head, "choices": choices, "usage": usage_json(generation.usage)}

    def events(self, generation: Generation) -> ChatEvents:
        chunks = Chunks(self.head(generation, "chat.completion.chunk"))
        return ChatEvents(self, generation, chunks)

    def _message(self, generation: Generation, index: int, piece: Piece) -> tuple[dict[str, Any], Piece]:
        if not self.may_call:
            return {"message": {**_TURN, "content": piece.text}}, piece
        reader = CallReader(one=self.one_call)
        text = reader.push(piece.text) + reader.flush()
        calls = [call_json(generation.id, index, at, call) for at, call in enumerate(reader.called())]
        if not calls:
            return {"message": {**_TURN, "content": text}}, piece
        return {"message": {**_TURN, "content": text or None, "tool_calls": calls}}, _called(piece)

    def choice(self, index: int, told: dict[str, Any], piece: Piece, tokenizer: Tokenizer) -> dict[str, Any]:
        """`told` is its message, or what is new of it."""
        logprobs = None if piece.logprobs is None else as_content(piece.logprobs, tokenizer)
        return self.ended(index, {**told, "logprobs": logprobs}, piece)


@dataclass(frozen=True, slots=True)
class ChatEvents:
    """Each choice begins with an event that says whose turn it is, and ends with one that says why it does."""

    shape: ChatShape
    generation: Generation
    chunks: Chunks
    _begun: set[int] = field(default_factory=set)
    _readers: dict[int, CallReader] = field(default_factory=dict)
    _calls: Counter[int] = field(default_factory=Counter)

    def news(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        told: list[bytes] = []
        calls: list[dict[str, Any]] = []
        if self.shape.may_call:
            piece, calls = self._read(choice.index, piece)
        running = msgspec.structs.replace(piece, finish_reason=None)
        if choice.index not in self._begun:
            self._begun.add(choice.index)
            told.append(self._event(choice, {**_TURN, "content": ""}, _NOTHING))
        if _shows(piece, self.shape):
            told.append(self._event(choice, {"content": piece.text}, running))
        if calls:
            told.append(self._event(choice, {"tool_calls": calls}, _NOTHING))
        if piece.finish_reason is not None:
            told.append(self._event(choice, {}, msgspec.structs.replace(_NOTHING, finish_reason=piece.finish_reason)))
        return b"".join(told + _last(self.chunks, self.shape, usage))

    def _read(self, index: int, piece: Piece) -> tuple[Piece, list[dict[str, Any]]]:
        """The piece with its text alone, and the calls that it completes, whole."""
        reader = self._readers.setdefault(index, CallReader(one=self.shape.one_call))
        text = reader.push(piece.text) + (reader.flush() if piece.finish_reason is not None else "")
        calls = []
        for call in reader.called():
            at = self._calls[index]
            calls.append({"index": at, **call_json(self.generation.id, index, at, call)})
            self._calls[index] += 1
        piece = msgspec.structs.replace(piece, text=text)
        return (_called(piece) if self._calls[index] else piece), calls

    def _event(self, choice: Choice, delta: dict[str, Any], piece: Piece) -> bytes:
        shown = self.shape.choice(choice.index, {"delta": delta}, piece, self.generation.tokenizer)
        return _chunk(self.chunks, self.shape, shown, self.generation)


def call_json(reply: str, index: int, at: int, call: Call) -> dict[str, Any]:
    """Call `at` of a reply's choice, in OpenAI's words."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": f"call_{reply.rpartition('-')[2]}_{index}_{at}", "type": "function", "function": function}


def _called(piece: Piece) -> Piece:
    """Why a choice with calls ended is that it called, where it was not cut."""
    if piece.finish_reason != "stop":
        return piece
    return msgspec.structs.replace(piece, finish_reason="tool_calls")


_NOTHING = Piece("", [], None, None)
_TURN = {"role": "assistant", "refusal": None}


def usage_json(usage: Usage) -> dict[str, Any]:
    """As OpenAI counts: cached tokens are those of the prompt, learned ones are told beside."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
        "virtual_tokens": usage.virtual_tokens,
    }


def _shows(piece: Piece, shape: _Asked) -> bool:
    return bool(piece.text or piece.logprobs or (shape.token_ids and piece.token_ids))


def _chunk(chunks: Chunks, shape: _Asked, choice: dict[str, Any], generation: Generation) -> bytes:
    """An event of a choice. Where usage is asked for, it is null until the end, or what it is so far."""
    if not shape.tells_usage:
        return chunks.chunk([choice], None, tells_usage=shape.include_usage)
    generation.settle()
    return chunks.chunk([choice], usage_json(generation.usage))


def _last(chunks: Chunks, shape: _Asked, usage: Usage | None) -> list[bytes]:
    """What ends the stream, once `usage` is there."""
    if usage is None or not shape.include_usage:
        return []
    return [chunks.chunk([], usage_json(usage))]
