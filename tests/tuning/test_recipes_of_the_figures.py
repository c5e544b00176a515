"""The recipes that docs/performance.md's figures were made by are read by the commands that stand in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softmux.tuning.recipes.distillation import INPUT, read_distillation
from softmux.tuning.recipes.recipe import PromptTuning, read_recipe
from softmux.tuning.sweep import tries_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "docs" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_by_the_command_it_names(path: Path) -> None:
    named = re.search(r"softmux (\w+) (\S+) --out (\S+)$", path.read_text().splitlines()[0])
    assert named
    assert named[2] == path.relative_to(ROOT).as_posix()
    if named[1] == "distill":
        teacher = read_distillation(path).teacher
        if teacher.file is not None:
            assert (path.parent / teacher.file).read_text().count(INPUT) == 1
        if teacher.adapter is not None:
            assert (path.parent / teacher.adapter).with_suffix(".toml") in RECIPES
        return
    recipe = read_recipe(path)
    assert (named[1] == "sweep") == ("sweep" in recipe.model_fields_set)
    if named[1] == "sweep":
        assert len(tries_of(recipe)) > 2
    if isinstance(recipe.method, PromptTuning) and recipe.method.init_from:
        assert (path.parent / recipe.method.init_from / "adapter_config.json").is_file()


def test_the_page_has_the_command_of_each() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    commands = [path.read_text().splitlines()[0].rpartition(". ")[2] for path in RECIPES]
    assert [command for command in commands if f"`{command}`" not in page] == []
