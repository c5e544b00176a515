"""Rows that have more tokens than a base has positions: named, or left out, before anything runs."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import transformers as tf
from rich.console import Console

from softmux.tuning.bases.base import Base, as_base
from softmux.tuning.data.examples import BadData
from softmux.tuning.data.split import is_test, is_validation
from softmux.tuning.public import Task
from softmux.tuning.public import tune as tune_tasks
from softmux.tuning.recipes.recipe import Lora, Train
from softmux.tuning.run import tune
from softmux.tuning.training.together import Together
from support.toy_encoder_decoders import mood_recipe, new_base
from support.toy_language import rows

QUIET = Console(file=io.StringIO())
LORA = 'kind = "lora"\nrank = 1\nalpha = 1'


@pytest.fixture(params=["bart", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Base:
    """Both have a table of 64 positions."""
    base = new_base("bart", tmp_path / "base")
    if request.param == "bart":
        return base
    config = tf.GPT2Config(vocab_size=base.vocab_size, n_embd=16, n_layer=1, n_head=2, n_positions=64, eos_token_id=2)
    return as_base(tf.GPT2LMHeadModel(config), base.tokenizer, "small")


def long_text(*, test: bool) -> str:
    texts = (f"{'long ' * 80}film {number} was dull" for number in range(99))
    return next(text for text in texts if is_test(text) == test and not (is_validation(text) and not test))


def test_training_leaves_them_out_and_one_that_is_measured_is_named(base: Base, tmp_path: Path) -> None:
    recipe = mood_recipe(tmp_path / "task", tmp_path / "base", LORA)
    recipe.write_text(recipe.read_text().replace("steps = 40", "steps = 1"))
    table, words = recipe.parent / "rows.csv", f"no room in the 64 positions that {base.label} has: shorten"
    whole = table.read_text()
    table.write_text(f"{whole}{long_text(test=False)},no\n")
    report = tune(recipe, tmp_path / "out", "cpu", base=base, console=QUIET, together=Together(save_every=0))
    assert sum(report.rows) == len(rows("mood"))
    table.write_text(f"{whole}{long_text(test=True)},no\n")
    with pytest.raises(BadData, match=rf"rows\.csv, row {len(rows('mood')) + 1}: .* {words}"):
        tune(recipe, tmp_path / "none", "cpu", base=base, console=QUIET)
    assert not (tmp_path / "none").exists()
    assert not any("lora" in name for name, _ in base.model.named_modules()), "the base is given back as it was"


def test_in_python_each_is_named(base: Base) -> None:
    given = [("film 7 was dull", "no"), (long_text(test=False), "no")]
    how, method = Train(steps=1, learning_rate=1e-3), Lora(kind="lora", rank=1, alpha=1)
    with pytest.raises(BadData, match=r"x, row 2: .* no room in the 64 positions"):
        tune_tasks([Task("x", given, method, how, validation=given[:1])], base)
    assert not any("lora" in name for name, _ in base.model.named_modules())
