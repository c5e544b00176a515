"""Generated tokens to text, piece by piece: what is pushed, joined, is what decoding all the tokens at once gives.

A piece never ends within a character: bytes whose character is not complete yet wait for the next tokens, or for
`flush`, which shows them as U+FFFD, as decoding the whole does.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Sequence
from typing import Protocol

from tokenizers import Tokenizer as FastTokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_WAIT = 8
"""Tokens that may wait for a character to become complete. It has four bytes at most: these never will."""


class Detokenizer(Protocol):
    def push(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` complete."""

    def flush(self) -> str:
        """What still waits, at the end of the sequence."""


class ByteTable(dict[int, bytes]):
    """The bytes each token of a byte-level vocabulary (GPT-2's and its descendants') stands for: empty for special
    tokens, and for ids beyond the tokenizer's vocabulary. Filled as used."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        stands_for = {ord(char): chr(byte) for char, byte in _byte_alphabet().items()}
        self._in_latin = dict.fromkeys(range(256), "\uffff") | stands_for
        """What stands for a byte as Latin-1's character of that byte, and whatever else that has as none of its."""

    @staticmethod
    def fits(tokenizer_json: str) -> bool:
        """Whether the tokenizer's decoder is the byte-level one, and nothing besides."""
        decoder = json.loads(tokenizer_json).get("decoder")
        return isinstance(decoder, dict) and decoder.get("type") == "ByteLevel"

    def __missing__(self, token: int) -> bytes:
        self[token] = known = b"" if token in self._special else self.raw(token)
        return known

    def raw(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        try:
            return str(text).translate(self._in_latin).encode("latin-1")
        except UnicodeEncodeError:  # an added token is written as it is
            return str(text).encode()


class ByteLevelDetokenizer:
    """A table look-up a token, and one incremental UTF-8 decoder."""

    __slots__ = ("_table", "_utf8")

    def __init__(self, table: ByteTable) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, tokens: Sequence[int]) -> str:
        table = self._table
        return self._utf8.decode(b"".join([table[token] for token in tokens]))

    def flush(self) -> str:
        return self._utf8.decode(b"", final=True)


class WindowDetokenizer:
    """For any other decoder: decodes a window of the last tokens with and without the new ones.

    The window begins at the tokens of the last piece, so that what a decoder does at the start of a text (stripping a
    space) happens there in both. `decode` turns ids into text. Tokens that spell bytes which are no UTF-8 may come out
    as another number of U+FFFD than in the whole.
    """

    __slots__ = ("_decode", "_shown", "_tokens")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = 0
        """How many of `_tokens` have been shown: those of the last piece."""

    def push(self, tokens: Sequence[int]) -> str:
        return "".join([self._push(token) for token in tokens])

    def _push(self, token: int) -> str:
        self._tokens.append(token)
        text = self._decode(self._tokens)
        if text.endswith(_REPLACEMENT) and len(self._tokens) - self._shown < _LONGEST_WAIT:
            return ""
        return self._show(text)

    def flush(self) -> str:
        return self._show(self._decode(self._tokens)) if len(self._tokens) > self._shown else ""

    def _show(self, text: str) -> str:
        before = self._decode(self._tokens[: self._shown]) if self._shown else ""
        new = text[len(before) :]
        if new:
            del self._tokens[: self._shown]
            self._shown = len(self._tokens)
        return new


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: visible Latin-1 stands for itself, the rest from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in visible}
    hidden = [byte for byte in range(256) if chr(byte) not in alphabet]
    alphabet.update({chr(0x100 + place): byte for place, byte in enumerate(hidden)})
    return alphabet
