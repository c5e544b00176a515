"""How a newcomer adds a method, walked with a toy: a config, a reader that gives parts, a row; no line elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import save

from softmux.formats import folder as adapter_folder
from softmux.formats.config import PromptLearningConfig, hidden_size
from softmux.formats.methods import METHODS, MethodFormat
from softmux.formats.methods.encoded import Tensors
from softmux.formats.parts import Parts, PromptPart
from softmux.formats.tensors import expect
from softmux.types import ModelSpec
from support.engines import TestEngine
from support.learned import prompt_files, vectors_for
from support.models import make_base


class SumTuningConfig(PromptLearningConfig):
    """A toy: the prompt is the sum of two that were trained apart."""


def read_sum_tuning(config: SumTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    shape = (config.num_virtual_tokens, hidden_size(config, spec))
    found = expect(tensors, {"left": shape, "right": shape})
    return (PromptPart(found["left"] + found["right"]),)


def write(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def test_a_toy_method_is_served_like_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = MethodFormat("prompt_tuning", SumTuningConfig, read_sum_tuning, frozenset({"prompt"}))
    monkeypatch.setattr(adapter_folder, "METHODS", {**METHODS, "SUM_TUNING": row})
    base = make_base("llama", tmp_path / "base")
    engine = TestEngine(tmp_path / "base")
    left, right = vectors_for(base, 4, seed=1), vectors_for(base, 4, seed=2)
    config = {"peft_type": "SUM_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    toy = {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save({"left": left, "right": right}),
    }
    adapters = [
        engine.adapter(write(tmp_path / "toy", toy)),
        engine.adapter(write(tmp_path / "known", prompt_files(left + right))),
    ]
    names = [engine.add([5, 6, 7], *adapter, max_tokens=6, ignore_eos=True) for adapter in adapters]
    bare = engine.add([5, 6, 7], max_tokens=6, ignore_eos=True)
    engine.run()
    theirs, ours = (engine.done[name].tokens for name in names)
    assert ours == theirs
    assert len(ours) == 6
    assert ours != engine.done[bare].tokens
    engine.close()
