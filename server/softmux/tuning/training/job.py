"""A task of a run of many: as it is given, while it is in, and as it left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from softmux.tuning.data.rows import TaskRow
from softmux.tuning.frozen.packing import Prepared, prepare
from softmux.tuning.recipes.recipe import Train
from softmux.tuning.training.cohort import Cohort, Rates, Start
from softmux.tuning.training.trainer import Trained, rate


@dataclass(frozen=True, slots=True)
class Job:
    """A task to train: where it starts, what it learns from, how. `prefix`: how many leading ids of its rows are keys
    and values. `measures_start`: it is validated before its first step, too, and kept as it was where no step is
    better. Names are unique within a trainer."""

    name: str
    start: Start
    rows: Sequence[TaskRow]
    validation: Sequence[TaskRow]
    how: Train
    prefix: int = 0
    measures_start: bool = False


@dataclass(frozen=True, slots=True)
class Finished:
    """A job that has left: `values` are its best step's. Or `error` says why it can't be learned so."""

    name: str
    trained: Trained
    values: dict[str, torch.Tensor]
    error: str | None = None


@dataclass(slots=True, eq=False)
class Active:
    """A job that is in: what it has seen so far, and where its numbers are."""

    job: Job
    cohort: Cohort
    draws: Iterator[list[TaskRow]]
    prepared: dict[int, Prepared]
    validation: list[Prepared]
    best: list[torch.Tensor]
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best_loss: float = math.inf
    exact: list[float] = field(default_factory=list)

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def due(self) -> bool:
        how = self.job.how
        return self.step % how.validate_every == 0 or self.step == how.steps

    @property
    def done(self) -> bool:
        how = self.job.how
        stale = sum(at > self.best_step for at, _ in self.validations)
        return self.step >= how.steps or stale >= how.patience

    def next_rows(self) -> list[Prepared]:
        how, found = self.job.how, []
        for row in next(self.draws):
            if id(row) not in self.prepared:
                self.prepared[id(row)] = prepare(row, self.job.prefix, how.dampening)
            found.append(self.prepared[id(row)])
        return found

    @property
    def rates(self) -> Rates:
        """Of the step that comes."""
        how = self.job.how
        size = how.learning_rate * rate(self.step, how.steps, how.warmup_steps)
        return Rates(size, how.weight_decay, how.clip_norm)

    def trained(self) -> Trained:
        return Trained(tuple(self.losses), tuple(self.validations), self.best_step, self.best_loss, tuple(self.exact))
