"""One task's training: AdamW on the learned vectors, warm-up and decay, the best step by the validation rows."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from softmux.errors import SoftmuxError
from softmux.tuning.methods import Learned
from softmux.tuning.recipe import Train
from softmux.tuning.rows import IGNORE, Batch, Row

VALIDATION_BATCH = 64


@dataclass(frozen=True, slots=True)
class Progress:
    """What a watcher is told after each step. `validation` is the latest mean loss a token, None before the first."""

    step: int
    loss: float
    validation: float | None


@dataclass(frozen=True, slots=True)
class Trained:
    """`losses` holds each step's loss, `validations` (step, loss) pairs; what is kept is `best_step`'s."""

    losses: tuple[float, ...]
    validations: tuple[tuple[int, float], ...]
    best_step: int
    best_loss: float


def train(
    learned: Learned,
    rows: Sequence[Row],
    validation: Sequence[Row],
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
    best = copy.deepcopy(learned.encoder.state_dict())
    learned.encoder.train()
    with _tensor_cores():
        for step in range(1, how.steps + 1):
            loss = answer_loss(learned, learned.collate(next(draws)))
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
                if validations[-1][1] < best_loss:
                    best_step, best_loss = validations[-1]
                    best = copy.deepcopy(learned.encoder.state_dict())
            watch(Progress(step, losses[-1], validations[-1][1] if validations else None))
            if sum(at > best_step for at, _ in validations) >= how.patience:
                break
    learned.encoder.load_state_dict(best)
    return Trained(tuple(losses), tuple(validations), best_step, best_loss)


def rate(step: int, steps: int, warmup: int) -> float:
    """The share of the learning rate at `step` (from 0): up in a line over `warmup` steps, then down in a line to 0."""
    warmup = min(warmup, steps // 2)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / (steps - warmup))


def batches(rows: Sequence[Row], how: Train) -> Iterator[list[Row]]:
    """Endless batches of mixed lengths: every row once before any again, or every answer equally often."""
    rng = random.Random(how.seed)  # noqa: S311 - the order of rows is no secret
    if how.balance:
        by_answer: dict[tuple[int, ...], list[Row]] = {}
        for row in rows:
            by_answer.setdefault(row.answer, []).append(row)
        groups = list(by_answer.values())
        while True:
            yield [rng.choice(rng.choice(groups)) for _ in range(how.batch_rows)]
    waiting: list[Row] = []
    while True:
        while len(waiting) < how.batch_rows:
            waiting += rng.sample(rows, len(rows))
        yield waiting[: how.batch_rows]
        del waiting[: how.batch_rows]


def answer_loss(learned: Learned, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy over the answers' tokens; the prompt's own tokens weigh nothing."""
    return _token_losses(learned, batch).sum() / (batch.targets != IGNORE).sum()


@torch.no_grad()
def mean_loss(learned: Learned, rows: Sequence[Row]) -> float:
    """Mean cross-entropy a token over all the answers of `rows`."""
    total, tokens = 0.0, 0
    by_length = sorted(rows, key=lambda row: row.length)
    for start in range(0, len(by_length), VALIDATION_BATCH):
        batch = learned.collate(by_length[start : start + VALIDATION_BATCH])
        total += float(_token_losses(learned, batch).sum())
        tokens += int((batch.targets != IGNORE).sum())
    return total / tokens


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """On CUDA lets float32 products round their operands (TF32) while training; measuring stays in full float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _token_losses(learned: Learned, batch: Batch) -> torch.Tensor:
    """`[rows · answer width]`, 0 where a row's answer is shorter."""
    width = batch.targets.shape[1]
    logits = learned.base.model(**learned.inputs(batch), logits_to_keep=width + 1).logits[:, :-1]
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), batch.targets.reshape(-1), reduction="none")
