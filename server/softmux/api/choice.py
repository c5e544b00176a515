"""One choice of a reply: its tokens become text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from softmux.api.stops import StopFinder
from softmux.api.tokenizer import Tokenizer
from softmux.types import FinishReason, Output, TokenLogprobs

_LEAST_LOGPROB = -9999.0
"""JSON has no infinity."""


class Logprobs(msgspec.Struct):
    """OpenAI's completions' shape."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Piece(msgspec.Struct):
    """What is new in a choice."""

    text: str
    token_ids: list[int]
    logprobs: Logprobs | None
    finish_reason: FinishReason | None

    @property
    def empty(self) -> bool:
        return not self.text and not self.token_ids and self.finish_reason is None


class Choice:
    """Reads one sequence's outputs; `push` gives what is new. `stopped` asks the caller to end the sequence.

    Stop strings are looked for from `min_tokens` tokens on.
    """

    def __init__(
        self, index: int, tokenizer: Tokenizer, stops: Sequence[str], *, min_tokens: int, logprobs: bool
    ) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stopped = False
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopFinder(stops) if stops else None
        self._min_tokens = min_tokens
        self._wants_logprobs = logprobs
        self._length = 0
        """Characters the tokens so far stand for, held ones included."""

    def push(self, output: Output) -> Piece:
        """What `output` adds. After the choice has ended, nothing."""
        if self.finish_reason is not None:
            return Piece("", [], None, None)
        self.cached_tokens += output.cached_tokens
        if self._stops is None and not self._wants_logprobs:
            self.tokens.extend(output.tokens)
            text = self._detokenizer.push(output.tokens)
            piece = Piece(text, list(output.tokens), None, None)
        else:
            piece = self._token_by_token(output)
        if self.finish_reason is None and output.finish_reason is not None:
            piece.text += self._rest()
            self.finish_reason = "stop" if self.stopped else output.finish_reason
        piece.finish_reason = self.finish_reason
        return piece

    def _token_by_token(self, output: Output) -> Piece:
        piece = Piece("", [], Logprobs([], [], [], []) if self._wants_logprobs else None, None)
        for place, token in enumerate(output.tokens):
            self.tokens.append(token)
            piece.token_ids.append(token)
            if piece.logprobs is not None:
                self._log(piece.logprobs, token, output.logprobs[place])
            piece.text += self._through(self._detokenizer.push([token]))
            if self.stopped:
                self.finish_reason = "stop"
                break
        return piece

    def _through(self, text: str) -> str:
        """`text`, as far as the stop strings let it through."""
        self._length += len(text)
        if self._stops is None or len(self.tokens) < self._min_tokens:
            return text
        shown, self.stopped = self._stops.push(text)
        return shown

    def _rest(self) -> str:
        text = self._through(self._detokenizer.flush())
        if self._stops is not None and not self.stopped:
            text += self._stops.flush()
        return text

    def _log(self, logprobs: Logprobs, token: int, values: TokenLogprobs) -> None:
        name = self._tokenizer.token_text
        best = {
            name(other): max(value, _LEAST_LOGPROB)
            for other, value in zip(values.top_ids, values.top_logprobs, strict=True)
        }
        chosen = max(values.chosen, _LEAST_LOGPROB)
        logprobs.tokens.append(name(token))
        logprobs.token_logprobs.append(chosen)
        logprobs.top_logprobs.append({**best, name(token): chosen})
        logprobs.text_offset.append(self._length)


def choice_json(index: int, piece: Piece, *, token_ids: bool) -> dict[str, Any]:
    """A choice as replies and chunks show it."""
    shown: dict[str, Any] = {"index": index, "text": piece.text, "finish_reason": piece.finish_reason}
    if token_ids:
        shown["token_ids"] = piece.token_ids
    shown["logprobs"] = piece.logprobs
    return shown


def joined(pieces: Sequence[Piece]) -> Piece:
    """Successive pieces of one choice as one."""
    logged = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    logprobs = Logprobs([], [], [], []) if logged else None
    for some in logged:
        assert logprobs is not None
        logprobs.tokens += some.tokens
        logprobs.token_logprobs += some.token_logprobs
        logprobs.top_logprobs += some.top_logprobs
        logprobs.text_offset += some.text_offset
    return Piece(
        "".join([piece.text for piece in pieces]),
        [token for piece in pieces for token in piece.token_ids],
        logprobs,
        pieces[-1].finish_reason if pieces else None,
    )
