"""Grammars compiled on one tokenizer. Work is bounded: what would take too much is refused, or found stuck later."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from softmux.errors import InvalidRequest
from softmux.types import Grammar

_JSON = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
"""One way to write a document, as Python's `json.dumps` does, which models know well: where white space is free, small
models go on with it for ever. What of a schema can't be followed is an error, never passed over."""

_MOST_STATES = 16_384
"""Of a grammar's lexer: a kibibyte or two each, kept as long as the grammar is."""
_STEP_FUEL = 100_000
_STEP_ITEMS = 25_000
"""What a token's mask may cost: some seven milliseconds of the lexer's work, and one of the parser's."""
_SAID = 400


class GrammarCompiler:
    """`tokenizer` is the `tokenizers` library's JSON, `vocabulary` the number of the model's logits, `ends` its end
    tokens, one at least. Building one takes about a second; compiling, milliseconds. Safe to use from threads."""

    def __init__(self, tokenizer: str, vocabulary: int, ends: Sequence[int]) -> None:
        try:
            self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocabulary, eos_token=list(ends))
        except ValueError:  # the tokenizer has more tokens than the model: masks are longer than its logits
            self._tokenizer = LLTokenizer(tokenizer, eos_token=list(ends))
        self._limits = LLParserLimits(
            max_lexer_states=_MOST_STATES,
            step_lexer_fuel=_STEP_FUEL,
            step_max_items=_STEP_ITEMS,
            verbose_errors=False,
        )
        added = json.loads(tokenizer).get("added_tokens") or ()
        self._marks = [str(token["content"]) for token in added if token.get("special") and token.get("content")]
        self.mask_words = (self._tokenizer.vocab_size + 31) // 32
        """Of a mask: 32 bits each, the first token's the lowest."""

    def compile(self, grammar: Grammar) -> LLMatcher:
        """A matcher at the grammar's beginning, to be copied for each sequence. Lets other threads run meanwhile.

        Raises `InvalidRequest` for what is no grammar, what asks for things that can't be followed, what is too
        complex, and what the tokenizer can't begin to spell.
        """
        if grammar.kind != "grammar":  # Lark has a notation of its own for them
            for mark in self._marks:  # where it must come, the library spells it by its token, which ends the reply
                if mark in grammar.text or re.escape(mark) in grammar.text:
                    raise _refused(grammar, f"it holds {mark}, a mark of the model's that no text shows")
        try:
            matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=self._limits)
        except Exception as error:  # its converter of GBNF has errors of its own
            raise _refused(grammar, str(error)) from None
        if matcher.is_error():
            raise _refused(grammar, matcher.get_error())
        mask = np.zeros(self.mask_words, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error() or not mask.any():
            why = matcher.get_error()
            if "NoExtension" in why or not why:
                why = "nothing that this model's tokens can spell begins it"
            raise _refused(grammar, why)
        return matcher


def _source(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_schema":
            return LLMatcher.grammar_from_json_schema(grammar.text, overrides=_JSON)  # type: ignore[arg-type]
        case "regex":
            return LLMatcher.grammar_from_regex(grammar.text)
        case "choice":
            words = [json.dumps(word, ensure_ascii=False) for word in json.loads(grammar.text)]
            return LLMatcher.grammar_from_lark("start: " + " | ".join(words))
        case "grammar":
            return LLMatcher.grammar_from_lark(any_to_lark(grammar.text))


_CALLED = {
    "json_schema": "The JSON schema",
    "regex": "The regular expression",
    "choice": "The list of choices",
    "grammar": "The grammar",
}


def _refused(grammar: Grammar, why: str) -> InvalidRequest:
    return InvalidRequest(f"{_CALLED[grammar.kind]} can't be followed: {said(why)}", param=grammar.param)


def said(why: str) -> str:
    """The library's words, short enough to pass on."""
    words = why.replace("<non-verbose/>", "").strip()
    return words if len(words) <= _SAID else words[:_SAID] + "…"
