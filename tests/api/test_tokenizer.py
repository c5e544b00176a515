from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from softmux.api.tokenizer import Tokenizer
from softmux.errors import InvalidRequest
from support.tokenizers_made import byte_level, save


def test_a_models_tokenizer_encodes_and_renders_as_transformers_does(tmp_path: Path) -> None:
    reference = save(byte_level(), tmp_path)
    tokenizer = asyncio.run(Tokenizer.load(str(tmp_path)))
    assert tokenizer.usable
    for text in ("a gripping film", " Größe 🎉", ""):
        for special in (True, False):
            expected = reference(text, add_special_tokens=special)["input_ids"]
            assert tokenizer.encode(text, add_special_tokens=special) == expected
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert tokenizer.render_chat(chat) == reference.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    with pytest.raises(InvalidRequest, match="unknown role wizard") as caught:
        tokenizer.render_chat([{"role": "wizard", "content": "hi"}])
    assert caught.value.param == "messages"


def test_a_model_without_a_tokenizer_is_served_by_ids(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = asyncio.run(Tokenizer.load(str(tmp_path)))
    assert not tokenizer.usable
    with pytest.raises(InvalidRequest, match="send token ids"):
        tokenizer.encode("text", add_special_tokens=True)
    with pytest.raises(InvalidRequest, match="no chat template"):
        tokenizer.render_chat([{"role": "user", "content": "hi"}])
    detokenizer = tokenizer.detokenizer()
    assert detokenizer.push([1, 2, 3]) + detokenizer.flush() == ""
