"""`init_from = "auto"`: which of a registry's adapters a task begins from.

Every adapter that the task's method can begin from is tried as it is, all of them in mixed batches, on a few of the
task's validation rows; the one with the least loss is taken. A bank of prompts to begin from is PromptTuner's
(arXiv 2603.05087), which narrows a large one down by clusters; here mixed forwards score all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from softmux.tuning.data.rows import Row
from softmux.tuning.frozen.decoder import FrozenBase
from softmux.tuning.recipes.recipe import Train
from softmux.tuning.starts.origin import Origin
from softmux.tuning.training.cohort import Start
from softmux.tuning.training.job import Job
from softmux.tuning.training.many import Trainer

ROWS = 32
"""So many validation rows, the first of them: never test rows."""
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Score:
    """The mean loss a token of a start as it is. `digest` is empty for the recipe's own."""

    name: str
    loss: float
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A start, and where it is from: None for the recipe's own."""

    start: Start
    origin: Origin | None
    name: str


def ranked(
    base: FrozenBase, candidates: Sequence[Candidate], validation: Sequence[Row], how: Train, prefix: int
) -> list[tuple[Candidate, Score]]:
    """The candidates by their loss, the best first; of equal ones the first given."""
    rows = validation[:ROWS]
    jobs = [Job(str(number), one.start, rows, rows, how, prefix) for number, one in enumerate(candidates)]
    losses = Trainer(base).measure(jobs)
    scored = [
        (one, Score(one.name, loss, one.origin.digest if one.origin else ""))
        for one, loss in zip(candidates, losses, strict=True)
    ]
    return sorted(scored, key=lambda pair: pair[1].loss if math.isfinite(pair[1].loss) else math.inf)


def tell(console: Console, task: str, scores: Sequence[Score], rows: int) -> None:
    """The best few, on a terminal."""
    shown = Table(box=None, pad_edge=False)
    for title in ("begin from", f"loss on {min(rows, ROWS)} validation rows"):
        shown.add_column(title)
    for score in scores[:SHOWN]:
        shown.add_row(escape(score.name), f"{score.loss:.4f}")
    console.print(shown)
    if len(scores) > SHOWN:
        console.print(f"and {len(scores) - SHOWN} more")
    equal = [score.name for score in scores if score.loss == scores[0].loss]
    tie = f", first by name of {len(equal)} equal ones" if len(equal) > 1 else ""
    console.print(f"{task} begins from {scores[0].name}{tie}", highlight=False)
