"""What came of a sweep: the tries as they ended, as a table, as JSON, and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from softmux.tuning.recipes.recipe import Recipe
from softmux.tuning.training.trainer import Trained

LEARNING_RATE = "learning rate"
NAMED = 8
"""Tries that the plot tells apart; the others are there, in grey."""


@dataclass(frozen=True, slots=True)
class Try:
    """One way of tuning the task. `choices` are what it was given of what was swept, as words; `recipes` one for each
    seed, and what became of each: None where its loss stopped being a number."""

    choices: dict[str, str]
    recipes: tuple[Recipe, ...]
    trained: tuple[Trained | None, ...] = ()

    @property
    def loss(self) -> float:
        """The mean of its seeds' best validation losses; infinity where one broke."""
        found = [float("inf") if one is None else one.best_loss for one in self.trained]
        return sum(found) / len(found)


@dataclass(frozen=True, slots=True)
class Swept:
    """All tries, the best first. `seconds` is the training of all of them."""

    tries: tuple[Try, ...]
    seconds: float

    @property
    def pick(self) -> Try:
        return self.tries[0]


def figures(swept: Swept) -> dict[str, Any]:
    return {
        "task": swept.pick.recipes[0].task,
        "seconds": round(swept.seconds, 1),
        "tries": [
            {
                "choices": one.choices,
                "loss": number(one.loss),
                "steps_to_text": steps_to_text(one, swept),
                "runs": [
                    None
                    if run is None
                    else {"seed": r.train.seed, "best_loss": number(run.best_loss), "best_step": run.best_step,
                          "validations": [(step, number(loss)) for step, loss in run.validations],
                          "exact": list(run.exact)}
                    for r, run in zip(one.recipes, one.trained, strict=True)
                ],
            }
            for one in swept.tries
        ],
    }  # fmt: skip


def number(loss: float) -> float | None:
    """A loss as JSON has it, which knows neither infinity nor what is not a number: None."""
    return loss if math.isfinite(loss) else None


def steps_to_text(one: Try, swept: Swept) -> list[int | None] | None:
    """Of each seed: the first validated step at which the try is no worse than the best validation loss that the same
    try has by `init = "text"`, None where it never is. None where text was not tried beside it."""
    if "init" not in one.choices:
        return None
    beside = one.choices | {"init": "text"}
    text = next((other for other in swept.tries if other.choices == beside), None)
    if text is None:
        return None
    return [
        None
        if mine is None or its is None
        else next((step for step, loss in mine.validations if loss <= its.best_loss), None)
        for mine, its in zip(one.trained, text.trained, strict=True)
    ]


def share_at_best(run: Trained) -> float:
    """The share of validation rows that are answered exactly at the step that is kept."""
    return next(
        (share for (step, _), share in zip(run.validations, run.exact, strict=True) if step == run.best_step), 0.0
    )


def _rows(swept: Swept) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for one in swept.tries for name in one.choices))
    compared = [steps_to_text(one, swept) for one in swept.tries]
    rows = []
    for one, reached in zip(swept.tries, compared, strict=True):
        runs = [run for run in one.trained if run is not None]
        spread = f" ± {(max(r.best_loss for r in runs) - min(r.best_loss for r in runs)) / 2:.4f}" if runs[1:] else ""
        loss = "not a number" if one.loss == float("inf") else f"{one.loss:.4f}{spread}"
        steps = ", ".join(str(run.best_step) for run in runs)
        exact = sum(share_at_best(run) for run in runs) / len(runs) if runs else 0.0
        row = [*(one.choices.get(name, "") for name in names), loss, f"{exact:.3f}", steps]
        if any(compared):
            row.append(", ".join("never" if step is None else str(step) for step in reached or ()))
        rows.append(row)
    return [
        *names,
        "validation loss",
        "exact",
        "best step",
        *(["steps to text's best loss"] if any(compared) else []),
    ], rows


def table(swept: Swept) -> Table:
    titles, rows = _rows(swept)
    shown_as = Table(box=None, pad_edge=False)
    for title in titles:
        shown_as.add_column(title)
    for row in rows:
        shown_as.add_row(*map(escape, row))
    return shown_as


def markdown(swept: Swept) -> list[str]:
    titles, rows = _rows(swept)
    return [f"| {' | '.join(cells)} |" for cells in (titles, ["---"] * len(titles), *rows)]


def plot(swept: Swept, path: Path) -> bool:
    """The validation curves of all tries, the pick's thick and the best few by name; beside them, where rates were
    swept, the best loss by rate. False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return False
    by_rate = _by_rate(swept)
    figure = Figure(figsize=(16 if by_rate else 9, 5), layout="constrained")
    axes = figure.add_subplot(1, 2, 1) if by_rate else figure.add_subplot()
    for place, one in enumerate(swept.tries):
        curves = [list(zip(*run.validations, strict=True)) for run in one.trained if run and run.validations]
        named = place < NAMED
        for number, (steps, losses) in enumerate(curves):
            axes.plot(
                steps,
                losses,
                color=f"C{place}" if named else "lightgrey",
                linewidth=3 if one is swept.pick else 1,
                zorder=2 if named else 1,
                label=words(one) if named and not number else None,
            )
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel("validation loss")
    axes.legend(fontsize="small", title="the best of them" if len(swept.tries) > NAMED else None)
    if by_rate:
        beside = figure.add_subplot(1, 2, 2)
        for name, points in by_rate.items():
            beside.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        beside.set_xscale("log")
        beside.set_xlabel("learning rate")
        beside.set_ylabel("best validation loss")
        beside.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return True


def _by_rate(swept: Swept) -> dict[str, list[tuple[float, float]]]:
    """Learning rate and loss of the tries that could be learned, by what else they were given; none where no such
    line has two points."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for one in swept.tries:
        if LEARNING_RATE in one.choices and one.loss != float("inf"):
            others = {name: value for name, value in one.choices.items() if name != LEARNING_RATE}
            rate = float(one.choices[LEARNING_RATE])
            lines.setdefault(_joined(others) or "as the recipe says", []).append((rate, one.loss))
    return lines if any(len(points) > 1 for points in lines.values()) else {}


def words(one: Try) -> str:
    """What the try was given, as a person reads it."""
    return _joined(one.choices) or "the recipe as it is"


def _joined(choices: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in choices.items())
