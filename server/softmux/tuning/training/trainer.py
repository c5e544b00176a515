"""One task's training: AdamW on what is learned, warm-up and decay, the best step by the validation rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from softmux.errors import SoftmuxError
from softmux.tuning.bases.base import tensor_cores
from softmux.tuning.recipes.recipe import Train

VALIDATION_BATCH = 64
_LIKE = 16
"""Batches whose rows are sorted by length together."""


class AnyRow(Protocol):
    """`answer`: what is to be learned of it, equal for rows of one kind."""

    @property
    def length(self) -> int: ...

    @property
    def answer(self) -> tuple[int, ...]: ...


R = TypeVar("R", bound=AnyRow)
R_contra = TypeVar("R_contra", bound=AnyRow, contravariant=True)


class Learner(Protocol[R_contra]):
    """What is trained: the numbers that are learned, and the loss of rows under them."""

    @property
    def device(self) -> torch.device: ...

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def train(self, on: bool) -> None:
        """Whether what is random while training (dropout) is on."""

    def losses(self, rows: Sequence[R_contra]) -> torch.Tensor:
        """The cross-entropy of every answer's token, or label, of `rows`, one after the other."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a watcher is told after each step. `validation` is the latest mean loss a token, None before the first."""

    step: int
    loss: float
    validation: float | None


@dataclass(frozen=True, slots=True)
class Trained:
    """`losses` holds each step's loss, `validations` (step, loss) pairs; what is kept is `best_step`'s. `exact`: of
    what generates, at each of the validations, the share of rows whose answer is the likeliest, token for token."""

    losses: tuple[float, ...]
    validations: tuple[tuple[int, float], ...]
    best_step: int
    best_loss: float
    exact: tuple[float, ...] = ()


def train(
    learned: Learner[R],
    rows: Sequence[R],
    validation: Sequence[R],
    how: Train,
    watch: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """Trains `learned` in place and leaves it as it was at the best step. Deterministic by `how.seed` on one device.

    Raises `SoftmuxError` where the loss stops being a number, which a smaller learning rate mends.
    """
    optimiser = torch.optim.AdamW(learned.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, how.steps, how.warmup_steps))
    draws = batches(rows, how)
    losses: list[float] = []
    validations: list[tuple[int, float]] = []
    best_step, best_loss = 0, math.inf
    best = _values(learned)
    learned.train(True)
    with tensor_cores():
        for step in range(1, how.steps + 1):
            with torch.autocast(learned.device.type, torch.bfloat16, enabled=bool(how.bfloat16)):
                loss = learned.losses(next(draws)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learned.parameters(), how.clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            schedule.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise SoftmuxError(f"The loss is {losses[-1]} at step {step}: lower train.learning_rate.")
            if step % how.validate_every == 0 or step == how.steps:
                validations.append((step, mean_loss(learned, validation)))
                learned.train(True)
                if validations[-1][1] < best_loss:
                    best_step, best_loss = validations[-1]
                    best = _values(learned)
            watch(Progress(step, losses[-1], validations[-1][1] if validations else None))
            if sum(at > best_step for at, _ in validations) >= how.patience:
                break
    learned.train(False)
    with torch.no_grad():
        for parameter, value in zip(learned.parameters(), best, strict=True):
            parameter.copy_(value)
    return Trained(tuple(losses), tuple(validations), best_step, best_loss)


def rate(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at `step` (from 0): up in a line over `warmup` steps, then down in a line to 0."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / (steps - warmup))


def batches(rows: Sequence[R], how: Train) -> Iterator[list[R]]:
    """Endless batches: every row once before any again, or every answer equally often; of mixed lengths, or alike."""
    rng = random.Random(how.seed)  # noqa: S311 - the order of rows is no secret
    if not how.like_lengths:
        yield from _mixed(rows, how, rng)
    several = _mixed(rows, how.model_copy(update={"batch_rows": how.batch_rows * _LIKE}), rng)
    while True:
        by_length = sorted(next(several), key=lambda row: row.length)
        alike = [by_length[start : start + how.batch_rows] for start in range(0, len(by_length), how.batch_rows)]
        yield from rng.sample(alike, len(alike))


def _mixed(rows: Sequence[R], how: Train, rng: random.Random) -> Iterator[list[R]]:
    if how.balance:
        by_answer: dict[tuple[int, ...], list[R]] = {}
        for row in rows:
            by_answer.setdefault(row.answer, []).append(row)
        groups = list(by_answer.values())
        while True:
            yield [rng.choice(rng.choice(groups)) for _ in range(how.batch_rows)]
    waiting: list[R] = []
    while True:
        while len(waiting) < how.batch_rows:
            waiting += rng.sample(rows, len(rows))
        yield waiting[: how.batch_rows]
        del waiting[: how.batch_rows]


@torch.no_grad()
def mean_loss(learned: Learner[R], rows: Sequence[R]) -> float:
    """Mean cross-entropy a token, or label, over all the answers of `rows`. Leaves the learner out of training."""
    learned.train(False)
    total, tokens = 0.0, 0
    by_length = sorted(rows, key=lambda row: row.length)
    for start in range(0, len(by_length), VALIDATION_BATCH):
        losses = learned.losses(by_length[start : start + VALIDATION_BATCH])
        total += float(losses.sum())
        tokens += len(losses)
    return total / tokens


def _values(learned: Learner[R]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in learned.parameters()]
