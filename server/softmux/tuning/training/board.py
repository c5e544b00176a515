"""What one sees of a run: a line a task with its step, losses and curve, or how many inputs are done;
TensorBoard's files for who wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich import progress as bars
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from softmux.errors import InvalidRequest
from softmux.tuning.training.trainer import Progress

_BARS = "▁▂▃▄▅▆▇█"
SHOWN = 24
"""So many tasks have a line; of more, those that stepped first that are not done."""


@dataclass(slots=True)
class Line:
    """A task's: `mean` is its running loss, `curve` that of each step."""

    steps: int
    step: int = 0
    mean: float | None = None
    validation: float | None = None
    curve: list[float] = field(default_factory=list)

    def see(self, progress: Progress) -> None:
        self.step, self.validation = progress.step, progress.validation
        self.mean = progress.loss if self.mean is None else 0.95 * self.mean + 0.05 * progress.loss
        self.curve.append(self.mean)


class Board:
    """Told of every step through `see`; shown on a terminal alone."""

    def __init__(self, steps: dict[str, int], writer: Any = None) -> None:
        self.lines = {name: Line(count) for name, count in steps.items()}
        self._writer = writer

    def see(self, name: str, progress: Progress) -> None:
        line = self.lines[name]
        fresh = progress.validation is not None and progress.validation != line.validation
        line.see(progress)
        if self._writer is not None:
            self._writer.add_scalar(f"{name}/loss", progress.loss, progress.step)
            if fresh:
                self._writer.add_scalar(f"{name}/validation", progress.validation, progress.step)

    def __rich__(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for title in ("task", "step", "loss", "validation", "curve"):
            table.add_column(title, justify="right" if title in ("step", "loss", "validation") else "left")
        running = [item for item in self.lines.items() if item[1].step < item[1].steps]
        for name, line in (running or list(self.lines.items()))[:SHOWN]:
            table.add_row(
                escape(name),
                f"{line.step}/{line.steps}",
                "" if line.mean is None else f"{line.mean:.4f}",
                "" if line.validation is None else f"{line.validation:.4f}",
                curve(line.curve, 32),
            )
        if len(self.lines) > 1:
            done, total = (sum(getattr(line, what) for line in self.lines.values()) for what in ("step", "steps"))
            table.add_row(f"{len(self.lines)} tasks", f"{done}/{total}", "", "", "")
        return table


def curve(values: Sequence[float], width: int) -> str:
    """The values as a line of bars: each is the mean of its share of them."""
    if not values:
        return ""
    count = min(width, len(values))
    cuts = [len(values) * i // count for i in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


@contextmanager
def shown(console: Console, steps: dict[str, int], tensorboard: Path | None = None) -> Iterator[Board]:
    """A board of these tasks, live while the context is open. Raises `InvalidRequest` where TensorBoard's files are
    asked for and its package is missing."""
    writer = None
    if tensorboard is not None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise InvalidRequest(
                "TensorBoard's files need its package: pip install 'softmux[tensorboard]'.", param="tensorboard"
            ) from error
        writer = SummaryWriter(str(tensorboard))
    board = Board(steps, writer)
    try:
        if console.is_terminal:
            with Live(board, console=console, refresh_per_second=4):
                yield board
        else:
            yield board
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def counted(console: Console, doing: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields what is to be told how many more of `total` are done: a line with a bar, while the context is open, on a
    terminal alone."""
    if not console.is_terminal:
        yield lambda _more: None
        return
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.MofNCompleteColumn(),
               bars.TimeRemainingColumn())  # fmt: skip
    with bars.Progress(*columns, console=console, transient=True) as line:
        yield partial(line.advance, line.add_task(escape(doing), total=total))
