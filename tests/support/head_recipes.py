"""Recipes of tasks with a head over a tiny encoder, with their rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

FULL = "[evaluate.full]\nsteps = 10\nlearning_rate = 1e-3\n"


def write(
    folder: Path,
    base: Path | str,
    *,
    method: str = "",
    metric: str = "accuracy",
    more: str = "",
    name: str = "toy",
    train: str = "",
    steps: int = 60,
    full: str = FULL,
    words: Sequence[str] = ("dull", "gripping"),
    answers: Sequence[str] = (" no", " yes"),
) -> Path:
    """A recipe and rows of words that decide the label, among mixed lengths of others."""
    folder.mkdir(exist_ok=True)
    table = io.StringIO()
    rows = csv.writer(table)
    rows.writerow(["prompt", "answer"])
    for number in range(80):
        at = number % len(words)
        rows.writerow([f"{'far too long ' * (number // 2 % 3)}film {number} was {words[at]}", answers[at]])
    (folder / "rows.csv").write_text(table.getvalue())
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'task = "{name}"\nbase = "{base}"\n{more}[data]\nsource = "file"\npath = "rows.csv"\n'
        f'[method]\nkind = "p_tuning_v2"\nvirtual_tokens = 4\n{method}\n'
        f"[train]\nsteps = {steps}\nbatch_rows = 8\nlearning_rate = 0.02\nwarmup_steps = 5\nvalidate_every = 20\n"
        f'like_lengths = true\n{train}[evaluate]\nmetric = "{metric}"\n{full}'
    )
    return recipe
