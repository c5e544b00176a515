"""docs/tuning.md has every field of a recipe, and its examples are recipes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import softmux.tuning
from softmux.evaluation import verdict
from softmux.tuning.recipes.distillation import Distillation
from softmux.tuning.recipes.fields import BEGIN, END, SECTIONS, written
from softmux.tuning.recipes.recipe import PromptTuning, Sweep

PAGE = Path(__file__).parents[2] / "docs" / "tuning.md"


def test_the_tables_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == written(page), "run `python -m softmux.tuning.recipes.fields docs/tuning.md`"


def test_the_verdicts_rules_are_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(verdict.BEGIN) == page.count(verdict.END) == 1
    assert page == verdict.written(page), "run `python -m softmux.evaluation.verdict docs/tuning.md`"


def test_every_field_says_what_it_does() -> None:
    for models in SECTIONS.values():
        for model in models:
            said = {name: field.description for name, field in model.model_fields.items() if name != "kind"}
            assert all(said.values()), (model.__name__, said)


def test_the_examples_are_what_the_code_takes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    swept, begun, distilled = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    Distillation.model_validate(tomllib.loads(distilled))
    Sweep.model_validate(tomllib.loads(swept)["sweep"])
    assert PromptTuning.model_validate(tomllib.loads(begun)["method"]).init_from == "sentiment@2"
    (python,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    compile(python, "tuning.md", "exec")
    (names,) = re.findall(r"from softmux\.tuning import (.*)", python)
    assert set(names.split(", ")) <= set(softmux.tuning.__all__)
