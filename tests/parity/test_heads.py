"""Classification heads, of many labels and methods, in one batch: PEFT's own logits (fp32, one unpadded row)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from softmux.errors import InvalidAdapter
from softmux.formats.folder import load_folder, read_adapter
from softmux.support_table import EXACT_HEADS
from softmux.types import KV_METHODS
from support.engines import TestEngine
from support.headed import (
    CLASSES,
    DECODERS,
    ENCODERS,
    LABELS,
    MASKED,
    METHODS,
    WITHOUT_PREFIX,
    lora,
    make_base,
    reference,
    tuned,
)
from support.loras import make_half
from support.models import VOCABULARY, greedy_reference


def read(engine: TestEngine, folder: Path, ids: list[int]) -> str:
    adapter = read_adapter(load_folder(folder), engine.engine.spec)
    root, virtual = engine.adapter(folder)
    return engine.read(
        ids, root, virtual, head=adapter.manifest.head, trained_prefix=adapter.manifest.method in KV_METHODS
    )


def methods_of(architecture: str) -> list[str]:
    if architecture in WITHOUT_PREFIX:
        return ["prompt", "p_tuning", *(["lora"] if architecture in MASKED else [])]
    return [*METHODS, "lora"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", [*ENCODERS, *WITHOUT_PREFIX, *DECODERS])
def test_scores_are_pefts_mixed_with_whatever_else_runs(architecture: str, device: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    engine = TestEngine(tmp_path / "base", device=device, max_step_tokens=256)
    methods = methods_of(architecture)
    cells = [(task, method, labels) for task in CLASSES for method in methods for labels in LABELS]
    models = {cell: tuned(base, architecture, *cell, tmp_path / "-".join(map(str, cell))) for cell in cells}
    draw, close = random.Random(architecture), 1e-5 if device == "cpu" else 2e-3

    def text(most: int = 14) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, most))]

    inputs = {cell: text() for cell in cells}
    windows = engine.engine.model.windows
    assert all(max(map(len, inputs.values())) > 2 * window for window in windows), "some see not all of themselves"
    assert bool(windows) == (architecture in MASKED)
    expected = {cell: reference(models[cell], ids, cell[0]) for cell, ids in inputs.items()}
    spoken = [text() for _ in range(6)] if architecture in DECODERS else []
    said = [greedy_reference(base, ids, 6) for ids in spoken]
    forwards: list[object] = []
    engine.engine.model.module.base_model.register_forward_hook(lambda *_: forwards.append(None))
    for _ in range(2):  # cold, and with whatever the cache keeps
        names = {cell: read(engine, tmp_path / "-".join(map(str, cell)), ids) for cell, ids in inputs.items()}
        generated = [engine.add(ids, max_tokens=6, ignore_eos=True) for ids in spoken]
        engine.run()
        for cell, name in names.items():
            done = engine.done[name]
            assert done.error is None, done.error
            assert done.reason == "stop"
            found = np.frombuffer(done.scores, np.float32).reshape(expected[cell].shape)
            np.testing.assert_allclose(found, expected[cell], rtol=close, atol=close, err_msg=f"{architecture} {cell}")
        for name, (tokens, certain) in zip(generated, said, strict=True):
            assert engine.done[name].tokens[:certain] == tokens[:certain]
    if device == "cpu":  # on a GPU fused layers may run in the module's place
        assert len(forwards) == len(engine.batches), "one forward pass a step"
    assert max(len({chunk.sequence.root for chunk in batch.chunks}) for batch in engine.batches) > 8
    engine.close()


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize(
    ("architecture", "method"),
    [("bert", "prompt"), ("bert", "prefix"), ("llama", "prompt"), ("llama", "prefix"), ("modernbert", "prompt")],
)
def test_a_lora_and_a_soft_prompt_with_a_head_are_as_on_the_merged_base(
    architecture: str, task: str, method: str, tmp_path: Path
) -> None:
    base = make_base(architecture, tmp_path / "base")
    folder = tmp_path / "pair"
    merged = make_half(base, folder, r=3, task_type=None, target_modules=lora(task, architecture).target_modules)
    model = tuned(merged, architecture, task, method, 4, folder)
    engine = TestEngine(tmp_path / "base", max_step_tokens=256)
    inputs = [[5, 6, 7, 8], [9, 30, 31, 32, 33, 34, 35]]
    names = [read(engine, folder, ids) for ids in inputs]
    engine.run()
    for name, ids in zip(names, inputs, strict=True):
        assert engine.done[name].error is None
        expected = reference(model, ids, task)
        found = np.frombuffer(engine.done[name].scores, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * abs(expected).max())
    engine.close()


def test_what_the_table_calls_exact_is_compared() -> None:
    prompts = {METHODS[method]("SEQ_CLS").peft_type.value for method in METHODS}
    assert EXACT_HEADS["decoder"] == prompts | {lora("SEQ_CLS", "llama").peft_type.value}
    assert EXACT_HEADS["encoder"] == EXACT_HEADS["decoder"]


def test_a_head_behind_a_pooler_that_the_checkpoint_lacks_is_refused(tmp_path: Path) -> None:
    base = make_base("bert", tmp_path / "base")
    tuned(base, "bert", "SEQ_CLS", "prefix", 2, tmp_path / "adapter")
    base.pooler = None
    base.save_pretrained(tmp_path / "poolerless")
    engine = TestEngine(tmp_path / "poolerless")
    with pytest.raises(InvalidAdapter, match="modules_to_save"):
        engine.adapter(tmp_path / "adapter")
    engine.close()


def test_heads_behind_layers_that_a_modernbert_lacks_bring_them_or_are_refused(tmp_path: Path) -> None:
    base = make_base("modernbert", tmp_path / "base")
    model = tuned(base, "modernbert", "TOKEN_CLS", "prompt", 2, tmp_path / "without")
    whole = make_base("modernbert-mean", tmp_path / "whole")
    brings = tuned(whole, "modernbert-mean", "SEQ_CLS", "prompt", 2, tmp_path / "brings")
    base.base_model.save_pretrained(tmp_path / "bare")
    whole.base_model.save_pretrained(tmp_path / "bare-mean")
    engine = TestEngine(tmp_path / "bare")
    with pytest.raises(InvalidAdapter, match=r"modules_to_save=.*\['head'\]"):
        engine.adapter(tmp_path / "without")
    engine.close()
    for folder, adapter, peft_model, task in (
        ("base", "without", model, "TOKEN_CLS"), ("bare-mean", "brings", brings, "SEQ_CLS"),
    ):  # fmt: skip
        engine = TestEngine(tmp_path / folder)
        name = read(engine, tmp_path / adapter, list(range(3, 33)))
        engine.run()
        expected = reference(peft_model, list(range(3, 33)), task)
        found = np.frombuffer(engine.done[name].scores, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
        engine.close()


@pytest.mark.parametrize("architecture", ENCODERS)
def test_the_last_layer_runs_for_the_tokens_that_sequences_heads_read(architecture: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    engine = TestEngine(tmp_path / "base", max_step_tokens=256)
    width = int(base.config.intermediate_size)
    given: list[int] = []
    served = engine.engine.model.module.base_model.encoder.layer[-1].output.dense
    served.register_forward_hook(lambda _module, inputs, _output: given.append(inputs[0].numel() // width))
    cells = [("SEQ_CLS", method, 4) for method in ("prefix", "prompt")]
    models = {cell: tuned(base, architecture, *cell, tmp_path / "-".join(map(str, cell))) for cell in cells}
    draw = random.Random(architecture)
    inputs = [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(4, 14))] for _ in range(8)]
    names = []
    for number, ids in enumerate(inputs):
        cell = cells[number % 2]
        names.append((read(engine, tmp_path / "-".join(map(str, cell)), ids), reference(models[cell], ids, "SEQ_CLS")))
    engine.run()
    for name, expected in names:
        found = np.frombuffer(engine.done[name].scores, np.float32).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert given == [len(inputs)], "one step, in which each row's first token alone was fed forward"
    engine.close()
