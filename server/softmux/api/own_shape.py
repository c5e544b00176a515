"""softmux's own shape of a generation: `POST /v1/generate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from softmux.api import sse
from softmux.api.amounts import Usage
from softmux.api.choice import Choice, Piece
from softmux.api.generation import Generation
from softmux.api.logprobs import as_lists
from softmux.api.tokenizer import Tokenizer
from softmux.errors import SoftmuxError


@dataclass(frozen=True, slots=True)
class OwnShape:
    token_ids: bool
    id_prefix: str = "gen-"

    def whole(self, generation: Generation, pieces: Sequence[Piece]) -> dict[str, Any]:
        tokenizer = generation.tokenizer
        choices = [self.choice(index, piece, tokenizer) for index, piece in enumerate(pieces)]
        return {**_head(generation, "generation"), "choices": choices, "usage": generation.usage.json()}

    def events(self, generation: Generation) -> OwnEvents:
        return OwnEvents(self, generation.tokenizer, sse.Chunks(_head(generation, "generation.chunk")))

    def in_its_words(self, error: SoftmuxError) -> SoftmuxError:
        return error

    def choice(self, index: int, piece: Piece, tokenizer: Tokenizer) -> dict[str, Any]:
        shown: dict[str, Any] = {"index": index, "text": piece.text, "finish_reason": piece.finish_reason}
        if self.token_ids:
            shown["token_ids"] = piece.token_ids
        shown["logprobs"] = None if piece.logprobs is None else as_lists(piece.logprobs, tokenizer)
        return shown


@dataclass(frozen=True, slots=True)
class OwnEvents:
    shape: OwnShape
    tokenizer: Tokenizer
    chunks: sse.Chunks

    def news(self, choice: Choice, piece: Piece, usage: Usage | None) -> bytes:
        if piece.finish_reason is None and not (piece.text or self.shape.token_ids or piece.logprobs):
            return b""
        shown = self.shape.choice(choice.index, piece, self.tokenizer)
        return self.chunks.chunk([shown], None if usage is None else usage.json())


def _head(generation: Generation, kind: str) -> dict[str, Any]:
    return {
        "id": generation.id,
        "object": kind,
        "created": generation.created,
        "model": generation.services.worker.spec.model_id,
        **generation.told,
    }
