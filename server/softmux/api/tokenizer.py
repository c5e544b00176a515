"""The model's tokenizer, in the API's process: text to ids, ids to text, chats to text. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from tokenizers import Tokenizer as FastTokenizer

from softmux.api.chat import ChatTemplate
from softmux.api.detokenize import ByteLevelDetokenizer, ByteTable, Detokenizer, WindowDetokenizer
from softmux.api.tokenizer_export import ExportedTokenizer, export_aside
from softmux.api.windows import Piece
from softmux.errors import InvalidRequest

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
"""How vocabularies of characters name the bytes that they fall back on."""
LONG_TEXT = 20_000
"""Characters from which on tokenizing is worth a thread of its own."""


class Tokenizer:
    """An `Encoder` of `softmux.formats.layout`, and the detokenizers that go with it. Safe to use from threads."""

    def __init__(self, exported: ExportedTokenizer) -> None:
        self._fast: FastTokenizer | None = None
        self._why_none = exported.why_none
        self._bytes: ByteTable | None = None
        self._chat: ChatTemplate | None = None
        if exported.chat_template is not None:
            self._chat = ChatTemplate(exported.chat_template, exported.special_tokens)
        if exported.tokenizer is not None:
            self._fast = FastTokenizer.from_str(exported.tokenizer)
            self._fast.no_padding()
            self._fast.no_truncation()
            if ByteTable.fits(exported.tokenizer):
                self._bytes = ByteTable(self._fast)

    @classmethod
    async def load(cls, model: str) -> Tokenizer:
        """The tokenizer of a model's folder or hub id, as transformers builds it.

        A model without a usable one is served by token ids alone. Raises `InternalError` as `export_aside` does.
        """
        return cls.exported(await export_aside(model))

    @classmethod
    def exported(cls, data: bytes) -> Tokenizer:
        """From what `export_aside` gave."""
        return cls(msgspec.json.decode(data, type=ExportedTokenizer))

    @property
    def usable(self) -> bool:
        return self._fast is not None

    def as_json(self) -> str:
        """In the `tokenizers` library's own words. Raises `InvalidRequest` where the model has none."""
        if self._fast is None:
            raise InvalidRequest(
                f"Replies of a model without a tokenizer that runs here ({self._why_none}) can't follow a grammar."
            )
        return str(self._fast.to_str())

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Raises `InvalidRequest` where the model has no tokenizer."""
        if self._fast is None:
            raise InvalidRequest(
                f"This model has no tokenizer that the server can run ({self._why_none}); send token ids.",
                param="prompt",
            )
        if len(text) < LONG_TEXT:
            encoding = self._fast.encode(text, add_special_tokens=add_special_tokens)
        else:  # unlike `encode`, it lets other threads run meanwhile
            [encoding] = self._fast.encode_batch([text], add_special_tokens=add_special_tokens)
        ids: list[int] = encoding.ids
        return ids

    def pieces(self, text: str) -> list[Piece]:
        """The text's own tokens and where they lie in it. Raises as `encode` does."""
        if self._fast is None:
            raise InvalidRequest(
                f"This model has no tokenizer that the server can run ({self._why_none}); it classifies no text.",
                param="input",
            )
        [encoding] = self._fast.encode_batch([text], add_special_tokens=False)
        places = zip(encoding.ids, encoding.offsets, encoding.word_ids, strict=True)
        return [Piece(token, start, end, word) for token, (start, end), word in places]

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """A chat as ids, ready for the assistant's turn. Raises `InvalidRequest` as `ChatTemplate.render` does."""
        if self._chat is None or self._fast is None:
            raise InvalidRequest("This model has no chat template; send a prompt instead.", param="messages")
        return self.encode(self._chat.render(messages, tools, variables or {}), add_special_tokens=False)

    def detokenizer(self) -> Detokenizer:
        """For one sequence of generated tokens. Special tokens show as nothing."""
        if self._bytes is not None:
            return ByteLevelDetokenizer(self._bytes)
        return WindowDetokenizer(self._decode)

    def token_text(self, token: int) -> str:
        """One token by itself, special ones included; `bytes:\\x..` for a part of a character."""
        if self._fast is None:
            return ""
        text = str(self._fast.decode([token], skip_special_tokens=False))
        if "\ufffd" in text:
            raw = self._bytes.raw(token) if self._bytes is not None else None
            if raw is not None:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
            return str(self._fast.id_to_token(token))
        return text

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text: its part of a character, nothing for special tokens."""
        if self._bytes is not None:
            return self._bytes[token]
        name = "" if self._fast is None else self._fast.id_to_token(token) or ""
        return bytes([int(name[3:5], 16)]) if _BYTE_TOKEN.fullmatch(name) else self._decode([token]).encode()

    def _decode(self, ids: list[int]) -> str:
        return "" if self._fast is None else str(self._fast.decode(ids, skip_special_tokens=True))
