"""A recipe with its rows, as every run begins."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from softmux.tuning import sources
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import Split, split
from softmux.tuning.recipes.recipe import Recipe, read_recipe


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe with its rows, and where its folder goes."""

    path: Path
    out: Path
    recipe: Recipe
    examples: Sequence[Example]
    parts: Split
    extra: Sequence[Example]


def plan_of(path: Path, out: Path, cache: Path | None, recipe: Recipe | None = None) -> Plan:
    """The recipe at `path`, its rows read, checked and split."""
    recipe = recipe or read_recipe(path)
    examples = sources.load(recipe.data, path.parent, cache, answers_of(recipe))
    parts = split(examples, recipe.train.validation_rows)
    return Plan(path, out, recipe, examples, parts, sources.load_extra(recipe.data, recipe.train.seed, cache))


def answers_of(recipe: Recipe) -> list[str] | None:
    """What the rows' answers may be, where the recipe says it."""
    return list(recipe.labels.values()) if isinstance(recipe.labels, dict) else recipe.labels


def announce(
    console: Console, recipe: Recipe, rows: int, parts: Split, learned: Iterable[torch.Tensor], base: str
) -> None:
    """Says what is about to be learned."""
    console.print(
        f"{recipe.task}: {rows} rows to train, {len(parts.validation)} to validate, {len(parts.test)} held out; "
        f"{count(learned):,} numbers to learn over {base}"
    )


def count(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
