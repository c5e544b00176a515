"""`softmux.tuning` as Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    VeraConfig,
)
from safetensors.torch import load_file

import softmux.tuning as tuning
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.folder import load_folder, parse_adapter
from softmux.inspection.base import describe
from softmux.tuning import PromptTuning, Task, Train, open_base, tune
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import BadData
from softmux.tuning.learned.from_peft import method_of
from softmux.tuning.learned.methods import begin

HOW = Train(steps=16, learning_rate=5e-2, batch_rows=8, warmup_steps=5, validate_every=8)
ROWS = [(f"film {i} was {('dull', 'gripping')[i % 2]}", (" no", " yes")[i % 2]) for i in range(80)]
CONFIGS: dict[str, Any] = {
    "prompt_tuning": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "p_tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
    "prefix_tuning": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "lora": LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
}


def test_pefts_own_configs_are_tuned_at_once_and_saved_as_the_server_reads_them(
    base_folder: Path, tmp_path: Path
) -> None:
    base = open_base(base_folder, device="cpu")
    seen: set[str] = set()
    tuned = tune(
        [Task(name, ROWS, config, HOW) for name, config in CONFIGS.items()], base, watch=lambda name, _: seen.add(name)
    )
    assert seen == set(CONFIGS)
    for one in tuned:
        assert one.trained.best_loss < one.trained.losses[0]
        folder = one.save(tmp_path / one.name)
        adapter = parse_adapter(load_folder(folder), describe(str(base_folder)))
        assert adapter.manifest.method == one.name
        assert json.loads((folder / "softmux.json").read_text())["trained_lengths"] == list(one.lengths)
        assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == base_folder.name
    assert load_file(tmp_path / "prompt_tuning" / "adapter_model.safetensors")["prompt_embeddings"].equal(
        tuned[0].values["soft.embedding.weight"]
    )
    PeftModel.from_pretrained(base.model, tmp_path / "lora")


def test_test_rows_are_left_out_and_given_validation_rows_are_taken(base: Base) -> None:
    task = Task("a", ROWS[:12], PromptTuning(kind="prompt_tuning", virtual_tokens=2), HOW, validation=ROWS[12:20])
    assert tune([task], base)[0].trained.best_step
    few = Task("a", ROWS[:3], PromptTuning(kind="prompt_tuning", virtual_tokens=2), HOW)
    with pytest.raises(InvalidRequest, match="The data has no"):
        tune([few], base)
    with pytest.raises(BadData, match="a, row 2, column answer: the cell is empty"):
        tune([Task("a", [("x", " y"), ("z", "")], CONFIGS["lora"], HOW)], base)
    with pytest.raises(InvalidRequest, match="Two tasks have one name"):
        tune([task, task], base)
    assert tune([], base) == []


def test_a_task_that_breaks_says_so_when_it_is_saved(base: Base, tmp_path: Path) -> None:
    wild = HOW.model_copy(update={"learning_rate": 1e38, "clip_norm": 1e30, "warmup_steps": 0})
    good, bad = tune(
        [Task("good", ROWS, CONFIGS["lora"], HOW), Task("bad", ROWS, CONFIGS["prefix_tuning"], wild)], base
    )
    assert good.error is None
    assert bad.error is not None
    with pytest.raises(SoftmuxError, match="bad: The loss is"):
        bad.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (LoraConfig(r=2, lora_dropout=0.1), "lora_dropout"),
        (LoraConfig(r=2, use_rslora=True), "use_rslora"),
        (LoraConfig(r=2, target_modules="all-linear"), "target_modules"),
        (LoraConfig(task_type="FEATURE_EXTRACTION"), "task_type"),
        (VeraConfig(), "method"),
        (PromptEncoderConfig(num_virtual_tokens=2, encoder_dropout=0.3), "encoder_dropout"),
    ],
)
def test_a_config_that_asks_for_more_is_refused_by_its_field(config: Any, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        method_of(config)
    assert caught.value.param == field


def test_vectors_begin_as_asked(base: Base) -> None:
    embeddings = base.model.get_input_embeddings().weight

    def first(init: Any, **more: Any) -> torch.Tensor:
        torch.manual_seed(0)
        learned = begin(PromptTuning(kind="prompt_tuning", virtual_tokens=5, init=init, **more), base, [" no", " yes"])
        return next(learned.parameters()).detach()

    words = [token for word in (" no", " yes") for token in base.encoder.encode(word, add_special_tokens=False)]
    assert first("labels").equal(embeddings[torch.tensor((words * 5)[:5])])
    assert all(any(row.equal(known) for known in embeddings) for row in first("sampled"))
    assert not any(row.equal(known) for row in first("random") for known in embeddings)
    text = base.encoder.encode("The film was", add_special_tokens=True)
    assert first("text", init_text="The film was").equal(first(None, init_text="The film was"))
    assert set(map(tuple, first(None, init_text="The film was").tolist())) <= {
        tuple(embeddings[i].tolist()) for i in text
    }
    with pytest.raises(InvalidRequest, match="name them in labels"):
        begin(PromptTuning(kind="prompt_tuning", virtual_tokens=2, init="labels"), base)
    with pytest.raises(ValueError, match="needs init_text"):
        PromptTuning(kind="prompt_tuning", virtual_tokens=2, init="text")


def test_what_is_public_is_there_and_reading_a_recipe_needs_no_torch() -> None:
    assert all(getattr(tuning, name) is not None for name in tuning.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'none'"):
        tuning.none  # noqa: B018
    code = "import sys, softmux.tuning, softmux.tuning.recipes.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
