"""Plans of one base, trained at once and measured one by one, whether their tasks generate or have a head."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from softmux.tuning.bases.base import Base
from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.plan import Plan
from softmux.tuning.training.board import shown
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.together import Together, precision, train_together
from softmux.tuning.write import Report


def train_plans(
    plans: Sequence[Plan],
    jobs: Sequence[Job],
    base: Base | HeadBase,
    console: Console,
    together: Together,
    started: float,
    measured: Callable[[Finished, float], Report],
) -> Iterator[tuple[Plan, Report | str]]:
    """Each plan, whose job is the one at its place, with its report or why there is none. `measured` writes the folder
    of what was learned, and is told the seconds since `started` (monotonic) that training took; what the run had saved
    is removed once all is written."""
    with shown(console, {job.name: job.how.steps for job in jobs}, together.tensorboard) as board:
        finished, checkpoint = train_together(
            base, jobs, precision(base, plans[0].recipe.train), together, board.see, console
        )
    seconds = time.monotonic() - started
    console.print("measuring on the held-out rows")
    for plan, ended in zip(plans, finished, strict=True):
        if ended.error is not None:
            yield plan, ended.error
            continue
        report = measured(ended, seconds)
        console.print(
            *([f"{ended.name}:"] if len(plans) > 1 else []),
            ", ".join(f"{name} {value:.3f}" for name, value in report.tuned.values.items()),
            f"→ {plan.out}",
        )
        yield plan, report
    checkpoint.remove()
