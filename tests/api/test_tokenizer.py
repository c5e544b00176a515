from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from softmux.api.tokenizer import LONG_TEXT, Tokenizer
from softmux.api.tokenizer_export import ExportedTokenizer, export, export_aside
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


def test_the_export_does_without_torch_and_is_the_same(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    script = f"""
import sys
from softmux.api.tokenizer_export import export, torch_hidden
with torch_hidden():
    exported = export({str(tmp_path)!r})
print(exported.tokenizer is not None, "torch" in sys.modules)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.split() == ["True", "False"]
    exported = asyncio.run(export_aside(str(tmp_path)))
    assert msgspec.json.decode(exported, type=ExportedTokenizer) == export(str(tmp_path))


def test_a_tokenizer_that_needs_torch_is_made_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "sitecustomize.py").write_text(_NEEDS_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    exported = asyncio.run(export_aside(str(tmp_path)))
    assert msgspec.json.decode(exported, type=ExportedTokenizer) == ExportedTokenizer(tokenizer="made with torch")


_NEEDS_TORCH = """
import importlib.util
import transformers


class NeedsTorch:
    def from_pretrained(model, **options):
        return NeedsTorch() if importlib.util.find_spec("torch") else None

    class backend_tokenizer:
        def to_str():
            return "made with torch"

    chat_template = None
    special_tokens_map = {}


transformers.AutoTokenizer = NeedsTorch
"""


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
