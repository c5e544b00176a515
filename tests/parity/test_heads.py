"""Classification heads, of many labels and methods, in one batch: PEFT's own logits (fp32, one unpadded row)."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers as tf

from softmux.formats.folder import load_folder, read_adapter
from softmux.types import KV_METHODS
from support.engines import TestEngine
from support.models import ARCHITECTURES, VOCABULARY, greedy_reference

K = 5
LABELS = (2, 4, 25)
_ENCODER = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 130,
    "type_vocab_size": 2,
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertConfig(**_ENCODER, pad_token_id=0),
    "roberta": lambda: tf.RobertaConfig(**_ENCODER, pad_token_id=1),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**_ENCODER, pad_token_id=1),
    "electra": lambda: tf.ElectraConfig(**_ENCODER, embedding_size=48, pad_token_id=0),
}
DECODERS = ("llama", "qwen2", "gpt2")
METHODS: dict[str, Callable[[str], Any]] = {
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=K),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=K - 1),
    "p_tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=K + 1, encoder_hidden_size=24),
}
CLASSES = {"SEQ_CLS": tf.AutoModelForSequenceClassification, "TOKEN_CLS": tf.AutoModelForTokenClassification}


def config_of(architecture: str) -> Any:
    config = (ENCODERS | ARCHITECTURES)[architecture]()
    config.pad_token_id = None if architecture in DECODERS else config.pad_token_id
    return config


def make_base(architecture: str, folder: Path) -> Any:
    """The bare base, saved; for decoders with its language head."""
    torch.manual_seed(0)
    kind = tf.AutoModelForCausalLM if architecture in DECODERS else tf.AutoModel
    model = kind.from_config(config_of(architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    model.save_pretrained(folder)
    return model


def tuned(base: Any, architecture: str, task: str, method: str, labels: int, folder: Path) -> Any:
    """A PEFT model with a head over the base's own weights, saved to `folder`."""
    torch.manual_seed(labels)
    config = copy.deepcopy(base.config)
    config.num_labels = labels
    model = CLASSES[task].from_config(config)
    backbone = base.base_model if architecture in DECODERS else base
    inner = getattr(model, model.base_model_prefix)
    missing, unexpected = inner.load_state_dict(copy.deepcopy(backbone.state_dict()), strict=False)
    assert not missing
    assert all("pooler" in name for name in unexpected)
    model = peft.get_peft_model(model, METHODS[method](task))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "prompt_encoder" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(folder)
    (folder / "softmux.json").write_text(json.dumps({"labels": [f"L{i}" for i in range(labels)]}))
    return model


@torch.no_grad()
def reference(model: Any, ids: list[int], task: str) -> np.ndarray:
    """`[tokens or 1, labels]`: the logits of the text's tokens."""
    given = torch.tensor([ids])
    logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0]
    return np.atleast_2d(logits[-len(ids) :].numpy() if task == "TOKEN_CLS" else logits.numpy())


def read(engine: TestEngine, folder: Path, ids: list[int]) -> str:
    adapter = read_adapter(load_folder(folder), engine.engine.spec)
    root, virtual = engine.adapter(folder)
    return engine.read(
        ids, root, virtual, head=adapter.manifest.head, trained_prefix=adapter.manifest.method in KV_METHODS
    )


@pytest.mark.parametrize("architecture", [*ENCODERS, *DECODERS])
def test_scores_are_pefts_mixed_with_whatever_else_runs(architecture: str, tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base")
    engine = TestEngine(tmp_path / "base", max_step_tokens=256)
    cells = [(task, method, labels) for task in CLASSES for method in METHODS for labels in LABELS]
    models = {cell: tuned(base, architecture, *cell, tmp_path / "-".join(map(str, cell))) for cell in cells}
    draw = random.Random(architecture)

    def text(most: int = 14) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, most))]

    inputs = {cell: text() for cell in cells}
    expected = {cell: reference(models[cell], ids, cell[0]) for cell, ids in inputs.items()}
    spoken = [text() for _ in range(6)] if architecture in DECODERS else []
    said = [greedy_reference(base, ids, 6) for ids in spoken]
    for _ in range(2):  # cold, and with whatever the cache keeps
        names = {cell: read(engine, tmp_path / "-".join(map(str, cell)), ids) for cell, ids in inputs.items()}
        generated = [engine.add(ids, max_tokens=6, ignore_eos=True) for ids in spoken]
        engine.run()
        for cell, name in names.items():
            done = engine.done[name]
            assert done.error is None, done.error
            assert done.reason == "stop"
            found = np.frombuffer(done.scores, np.float32).reshape(expected[cell].shape)
            np.testing.assert_allclose(found, expected[cell], rtol=1e-5, atol=1e-5, err_msg=f"{architecture} {cell}")
        for name, (tokens, certain) in zip(generated, said, strict=True):
            assert engine.done[name].tokens[:certain] == tokens[:certain]
    engine.close()
