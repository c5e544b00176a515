"""One choice of a reply: its tokens become text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from softmux.api.logprobs import Logged
from softmux.api.stops import StopFinder
from softmux.api.tokenizer import Tokenizer
from softmux.api.wish import Wish
from softmux.types import FinishReason, Output


class Piece(msgspec.Struct):
    """What is new in a choice."""

    text: str
    token_ids: list[int]
    logprobs: list[Logged] | None
    """None where none are wanted."""
    finish_reason: FinishReason | Literal["tool_calls"] | None

    @property
    def empty(self) -> bool:
        return not self.text and not self.token_ids and self.finish_reason is None


class Choice:
    """Reads one sequence's outputs; `push` gives what is new. `stopped` asks the caller to end the sequence.

    Stop strings and stop tokens are looked for from `min_tokens` tokens on; neither is part of the text.
    """

    def __init__(self, index: int, tokenizer: Tokenizer, wish: Wish) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None
        self.stopped = False
        self._detokenizer = tokenizer.detokenizer()
        self._stops = StopFinder(wish.stops) if wish.stops else None
        self._stop_tokens = wish.stop_token_ids
        self._min_tokens = wish.sampling.min_tokens
        self._wants_logprobs = wish.sampling.logprobs is not None
        self._length = 0
        """Characters the tokens so far stand for, held ones included."""

    def push(self, output: Output) -> Piece:
        """What `output` adds. After the choice has ended, nothing."""
        if self.finish_reason is not None:
            return Piece("", [], None, None)
        self.cached_tokens += output.cached_tokens
        if self._stops is None and not self._wants_logprobs and not self._stop_tokens:
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
        piece = Piece("", [], [] if self._wants_logprobs else None, None)
        for place, token in enumerate(output.tokens):
            self.tokens.append(token)
            piece.token_ids.append(token)
            if piece.logprobs is not None:
                piece.logprobs.append(Logged(token, output.logprobs[place], self._length))
            if token in self._stop_tokens and len(self.tokens) >= self._min_tokens:
                piece.text += self._rest()
                self.stopped = True
            else:
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


def joined(pieces: Sequence[Piece]) -> Piece:
    """Successive pieces of one choice as one."""
    if len(pieces) == 1:
        return pieces[0]
    logged = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    return Piece(
        "".join([piece.text for piece in pieces]),
        [token for piece in pieces for token in piece.token_ids],
        [one for some in logged for one in some] if logged else None,
        pieces[-1].finish_reason if pieces else None,
    )
