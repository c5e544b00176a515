"""Encoders of BERT's build run through their layers' own parts: the same numbers, and nothing of the modules around."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softmux.engine.encoder import PackedEncoder
from softmux.formats.folder import load_folder, read_adapter
from softmux.types import KV_METHODS
from support.engines import TestEngine
from support.headed import ENCODERS, make_base, tuned
from support.models import VOCABULARY

LABELS = 4


def scores(engine: TestEngine, cells: list[Path], texts: list[list[int]]) -> list[bytes]:
    """Of each text by each task, all in one batch."""
    names = []
    for folder in cells:
        manifest = read_adapter(load_folder(folder), engine.engine.spec).manifest
        root, virtual = engine.adapter(folder)
        trained = manifest.method in KV_METHODS
        names += [engine.read(ids, root, virtual, head=manifest.head, trained_prefix=trained) for ids in texts]
    engine.run()
    assert all(engine.done[name].error is None for name in names)
    return [engine.done[name].scores for name in names]


@pytest.mark.parametrize(
    ("architecture", "changes"), [*((name, {}) for name in ENCODERS), ("electra", {"embedding_size": 32})]
)
def test_the_scores_are_those_of_the_whole_modules(architecture: str, changes: dict[str, Any], tmp_path: Path) -> None:
    base = make_base(architecture, tmp_path / "base", **changes)
    engine = TestEngine(tmp_path / "base", max_step_tokens=512)
    model = engine.engine.model
    assert isinstance(model, PackedEncoder)
    assert model.through is not None
    assert engine.engine.runner.ways.fallbacks["encoder"] == 0
    attentions: list[object] = []
    for layer in model.module.base_model.encoder.layer:
        layer.attention.register_forward_hook(lambda *_: attentions.append(None))
    draw = random.Random(architecture)
    texts = [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 14))] for _ in range(6)]
    token, sequence = (
        [tmp_path / f"{task}-{method}" for method in ("prefix", "lora")] for task in ("TOKEN_CLS", "SEQ_CLS")
    )
    for task, folders in (("TOKEN_CLS", token), ("SEQ_CLS", sequence)):
        for method, folder in zip(("prefix", "lora"), folders, strict=True):
            tuned(base, architecture, task, method, LABELS, folder)
    scores(engine, [*token, *sequence], texts)  # from here on all adapters are there, and all steps the same
    straight = scores(engine, token, texts), scores(engine, sequence[:1], texts)
    assert not attentions, "transformers' modules did not run"
    model.through.detach()
    whole = scores(engine, token, texts), scores(engine, sequence[:1], texts)
    assert attentions
    assert straight[0] == whole[0], "all tokens are read: the same products of the same numbers"
    for ours, theirs in zip(straight[1], whole[1], strict=True):  # of one token each: products of fewer rows
        np.testing.assert_allclose(np.frombuffer(ours, np.float32), np.frombuffer(theirs, np.float32), 1e-5, 1e-5)
    engine.close()


def test_what_steps_do_not_give_runs_as_transformers_wrote_it(tmp_path: Path) -> None:
    make_base("bert", tmp_path / "base")
    engine = TestEngine(tmp_path / "base")
    model = engine.engine.model
    assert isinstance(model, PackedEncoder)
    assert model.through is not None
    given = model.embedding(torch.tensor([5, 6, 7]))
    reference = model.eager(given)
    model.through.detach()
    assert reference.equal(model.eager(given))
    engine.close()
