from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from softmux.api.tokenizer import LONG_TEXT, Tokenizer
from softmux.api.tokenizer_export import ExportedTokenizer
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


def test_a_long_text_is_tokenized_beside_the_event_loop() -> None:
    fast = byte_level()
    tokenizer = Tokenizer(ExportedTokenizer(tokenizer=fast.to_str()))
    text = "a gripping film, déjà vu. " * (3_000_000 // 26)
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - before)

    async def run() -> tuple[list[int], float]:
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0.05)  # it ticks
        began = time.monotonic()
        ids = await asyncio.to_thread(tokenizer.encode, text, True)
        seconds = time.monotonic() - began
        await asyncio.sleep(0.05)  # and a tick that was held up is counted
        ticking.cancel()
        return ids, seconds

    ids, seconds = asyncio.run(run())
    assert max(gaps) < seconds / 2  # the rest is taking the ids out
    short = text[: LONG_TEXT - 1]
    assert ids[:1000] == tokenizer.encode(short, add_special_tokens=True)[:1000]


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
