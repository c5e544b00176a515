"""From a recipe to a folder that PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from softmux.formats.layout import Layout
from softmux.formats.softmux_json import SoftmuxJson
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import BadData, Example
from softmux.tuning.data.rows import Row, encode
from softmux.tuning.evaluate import generate
from softmux.tuning.learned.methods import Learned
from softmux.tuning.recipes.recipe import Train
from softmux.tuning.run import tune
from softmux.tuning.training.trainer import batches, rate
from softmux.tuning.write import Report
from support.recipe_methods import METHODS

Write = Callable[..., Path]
Run = Callable[[Path, Path], Report]


@pytest.mark.parametrize("method", METHODS)
def test_tuning_lowers_the_loss_and_writes_a_folder_peft_loads(
    method: str, write_recipe: Write, run_tune: Run, base: Base, tmp_path: Path
) -> None:
    report = run_tune(write_recipe(method, steps=120), tmp_path / "out")
    assert report.trained.best_loss < 0.9 * report.trained.losses[0]
    assert report.trained.best_loss == min(loss for _, loss in report.trained.validations)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "README.md", "adapter_config.json", "adapter_model.safetensors", "recipe.toml", "softmux.json",
    ]  # fmt: skip
    assert list(load_file(tmp_path / "out" / "adapter_model.safetensors")) == ["prompt_embeddings"]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-base"
    assert str(tmp_path) not in json.dumps(config)
    said = SoftmuxJson.model_validate_json((tmp_path / "out" / "softmux.json").read_text())
    assert said.trained_lengths == list(report.lengths)
    assert f"{report.tuned.values['exact']:.3f}" in (tmp_path / "out" / "README.md").read_text()
    PeftModel.from_pretrained(base.model, tmp_path / "out")


@pytest.mark.parametrize("method", [name for name in METHODS if name != "p_tuning_template"])
def test_what_is_measured_is_what_peft_generates_from_the_folder(
    method: str, write_recipe: Write, run_tune: Run, base: Base, tmp_path: Path
) -> None:
    run_tune(write_recipe(method, steps=5), tmp_path / "out")
    peft = PeftModel.from_pretrained(base.model, tmp_path / "out").eval()
    config = peft.peft_config["default"]
    kind = "prefix_tuning" if config.peft_type == "PREFIX_TUNING" else "prompt_tuning"
    learned = Learned(base, Layout(config.num_virtual_tokens, None, kind), peft)
    prompts = ["film", "a gripping, beautiful film", "far too long " * 4]
    rows = [encode(Example(text, " x"), learned.layout, base.encoder, base.vocab_size, None) for text in prompts]
    for prompt, text in zip(prompts, generate(base, learned, rows, 8), strict=True):
        ids = base.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = peft.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :].tolist()
        assert text == base.text(out)


def test_the_same_seed_gives_the_same_vectors_and_another_gives_others(
    write_recipe: Write, base_folder: Path, tmp_path: Path
) -> None:
    vectors = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = write_recipe("p_tuning_mlp", steps=6, extra=f'base = "{base_folder}"\n')
        recipe.write_text(recipe.read_text().replace("[train]", f"[train]\nseed = {seed}"))
        tune(recipe, tmp_path / name, "cpu")
        vectors.append(load_file(tmp_path / name / "adapter_model.safetensors")["prompt_embeddings"])
    assert torch.equal(vectors[0], vectors[1])
    assert not torch.equal(vectors[0], vectors[2])


def test_a_run_stops_early_where_nothing_gets_better(write_recipe: Write, run_tune: Run, tmp_path: Path) -> None:
    recipe = write_recipe(steps=200)
    recipe.write_text(recipe.read_text().replace("learning_rate = 0.05", "learning_rate = 1e-12\npatience = 2"))
    report = run_tune(recipe, tmp_path / "out")
    steps = [step for step, _ in report.trained.validations]
    assert len(report.trained.losses) == steps[-1] < 200
    assert sum(step > report.trained.best_step for step in steps) == 2


def test_a_tuned_again_task_keeps_its_authors_notes(write_recipe: Write, run_tune: Run) -> None:
    recipe = write_recipe(steps=2)
    (recipe.parent / "README.md").write_text("# old\n\n## Notes\n\nTried twice.\n")
    run_tune(recipe, recipe.parent)
    readme = (recipe.parent / "README.md").read_text()
    assert readme.startswith("# toy\n")
    assert readme.endswith("## Notes\n\nTried twice.\n")
    assert recipe.is_file()


def test_a_folder_tuned_in_its_place_keeps_what_lies_in_it(write_recipe: Write, run_tune: Run) -> None:
    recipe = write_recipe(steps=2)
    rows = (recipe.parent / "rows.csv").read_bytes()
    (recipe.parent / "more").mkdir()
    (recipe.parent / "more" / "notes.txt").write_text("mine")
    (recipe.parent / "adapter_model.lora.safetensors").write_text("of a pair that it was")
    (recipe.parent / "evaluation.html").write_text("of what it was")
    for _ in range(2):
        run_tune(recipe, recipe.parent)
    assert (recipe.parent / "rows.csv").read_bytes() == rows
    assert (recipe.parent / "more" / "notes.txt").read_text() == "mine"
    assert not (recipe.parent / "adapter_model.lora.safetensors").exists()
    assert not (recipe.parent / "evaluation.html").exists()


def test_bad_data_writes_nothing(write_recipe: Write, run_tune: Run, tmp_path: Path) -> None:
    recipe = write_recipe(data=b"prompt,answer\na, x\nb,\n")
    with pytest.raises(BadData, match=r"rows\.csv, row 2, column answer"):
        run_tune(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_rate_warms_up_and_decays_in_lines() -> None:
    rates = [rate(step, 100, 10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10:] == pytest.approx([1 - i / 90 for i in range(90)])


def test_every_row_comes_once_before_any_again_and_balance_evens_the_answers() -> None:
    rows = [Row((i,), (0 if i < 18 else 1,)) for i in range(20)]
    how = Train(steps=1, learning_rate=1, batch_rows=5)
    draws = batches(rows, how)
    assert sorted(row.ids for _ in range(4) for row in next(draws)) == [row.ids for row in rows]
    even = batches(rows, how.model_copy(update={"balance": True}))
    share = sum(row.answer == (1,) for _ in range(200) for row in next(even)) / 1000
    assert 0.4 < share < 0.6
