"""What a row says does not depend on the lengths of its neighbours, where a window ends within it, too: transformers
counts a window in columns, and padding stands between a prefix and its row."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedConfig

from softmux.formats.folder import load_folder, read_adapter
from softmux.formats.layout import Layout
from softmux.inspection.base import describe
from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.evaluate import answering
from softmux.tuning.frozen.decoder import padded_base
from softmux.tuning.voices.voice import Voice
from support.engines import TestEngine
from support.loras import make_pair
from support.models import greedy_reference, load_peft, make_adapter, make_base
from support.tuning_jobs import apart, fresh, gradients, job

TEXTS = [(5, 9, 33), (8, 41, 7, 62, 11), (70, 13, 25, 90, 4, 56, 31, 88), tuple(range(20, 34))]
NEW = 6
BASES = {
    "mistral": {},
    "gemma2": {},
    "gemma3": {},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1},
}
"""Each with what makes its layers see a window."""


def base_of(model: Any) -> Base:
    return Base(model, None, "tiny", torch.device("cpu"), (2,))


def spoken(name: str, window: int, method: str, folder: Path) -> tuple[Voice, Any, tuple[int, ...]]:
    """The voice of an adapter, PEFT's model of it, and its learned ids."""
    model = make_base(name, folder / "base", sliding_window=window, **BASES[name])
    if method == "pair":
        peft = make_pair(model, "prefix_tuning", folder / "adapter")
    else:
        make_adapter(model, method, folder / "adapter")
        peft = load_peft(model, folder / "adapter")
    adapter = read_adapter(load_folder(folder / "adapter"), describe(str(folder / "base"), fingerprints=True))
    voice = Voice.of(base_of(model), Layout.of(adapter.manifest), adapter.parts)
    return voice, peft, tuple(-1 - i for i in range(adapter.manifest.virtual_tokens))


@pytest.mark.parametrize(
    ("name", "window", "method"),
    [
        ("mistral", 12, "prompt_tuning"),
        ("mistral", 3, "prefix_tuning"),
        ("mistral", 16, "prefix_tuning"),
        ("gemma2", 12, "prefix_tuning"),
        ("gemma3", 12, "pair"),
        ("qwen2", 12, "prefix_tuning"),
    ],
)
def test_rows_among_longer_ones_say_what_they_say_alone_and_served(
    name: str, window: int, method: str, tmp_path: Path
) -> None:
    voice, peft, learned = spoken(name, window, method, tmp_path)
    inputs = [(*learned, *text) for text in TEXTS]
    among = voice.taught(inputs, NEW)
    for own, ids in zip(among, inputs, strict=True):
        (alone,) = voice.taught([ids], NEW)
        assert own == alone
        assert own.taught is not None
        assert alone.taught is not None
        assert abs(own.taught - alone.taught).max() < 1e-4 * abs(alone.taught).max()
    engine = TestEngine(tmp_path / "base")
    try:
        key, _ = engine.adapter(tmp_path / "adapter")
        served = [engine.text(list(ids), key, max_tokens=NEW) for ids in inputs]
        engine.run()
        certain = 0
        for own, text, name_of in zip(among, TEXTS, served, strict=True):
            wanted, sure = greedy_reference(peft, list(text), NEW)
            assert list(own.answer)[:sure] == wanted[:sure]
            assert engine.done[name_of].tokens[:sure] == [token for token in wanted[:sure] if token != 2]
            certain += sure
        assert certain > NEW
    finally:
        engine.close()


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
@torch.no_grad()
def test_logits_before_answers_are_those_of_the_row_alone(method: str, tmp_path: Path) -> None:
    voice, _, learned = spoken("mistral", 12, method, tmp_path)
    rows = [Row((*learned, *text), answer) for text, answer in zip(TEXTS, [(3, 4), (5,), (6, 7, 8), (9,)], strict=True)]
    seen = 0
    for some, logits in answering(voice.base, voice, rows, 3):
        alone = [logits for row in some for _, logits in answering(voice.base, voice, [row], 1)]
        assert torch.allclose(logits, torch.cat(alone), atol=1e-4)
        seen += len(some)
    assert seen == len(rows)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_losses_of_a_batch_are_those_of_its_rows_and_of_packed_ones(method: str, tmp_path: Path) -> None:
    base = base_of(make_base("mistral", tmp_path))
    each = job("x", method, base, 5)
    learned = fresh(method, base, 5)
    rows = each.rows[:4]
    assert len({row.length for row in rows}) > 2
    losses = learned.losses(rows)
    assert torch.allclose(losses, torch.cat([learned.losses([row]) for row in rows]), atol=1e-4)
    losses.mean().backward()
    expected = [parameter.grad for parameter in learned.parameters() if parameter.grad is not None]
    loss, found = gradients(padded_base(base.model), [each], 60)["x"]
    assert loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert apart(found, expected) < 1e-4


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=20),
    size=st.integers(1, 6), prefix=st.integers(0, 2), more=st.integers(0, 4), window=st.none() | st.integers(1, 16),
)  # fmt: skip
def test_batches_hold_each_row_once_and_pad_none_that_a_window_cuts(
    lengths: list[int], size: int, prefix: int, more: int, window: int | None
) -> None:
    base = base_of(SimpleNamespace(config=PreTrainedConfig(sliding_window=window)))
    draw = random.Random(len(lengths))
    rows = [Row((1,) * (n - cut), (1,) * cut) for n in lengths for cut in (draw.randrange(n),)]
    found = list(base.batches(rows, size, prefix=prefix, more=more))
    order = [i for batch in found for i in batch]
    assert sorted(order) == list(range(len(rows)))
    assert [rows[i].length for i in order] == sorted(lengths, reverse=True)
    for batch in found:
        assert 1 <= len(batch) <= size
        own = {rows[i].length for i in batch}
        assert len(own) == 1 or not prefix or window is None or max(own) + more <= window
    if not prefix or window is None or max(lengths) + more <= window:
        assert len(found) == -(-len(rows) // size)
