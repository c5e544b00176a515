"""Tasks with a head, from their rows to their folders: all tasks of an encoder are trained at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console

from softmux.tuning.bases.device_words import device_words
from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.bases.head_rows import encode_row, labelled, labels_of
from softmux.tuning.data.examples import BadData, Example
from softmux.tuning.data.rows import HeadRow
from softmux.tuning.evaluate import Figures, score_labels
from softmux.tuning.frozen.encoder import positions_of
from softmux.tuning.learned.heads import HeadLearned, begin_full, begin_prefix, head_start, put_head
from softmux.tuning.plan import Plan, announce, count
from softmux.tuning.probe import probe, probe_parameters
from softmux.tuning.recipes.recipe import PTuningV2, Recipe
from softmux.tuning.train_plans import train_plans
from softmux.tuning.training.board import Board, shown
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.training.together import Together
from softmux.tuning.training.trainer import Progress, train
from softmux.tuning.write import Report, write_folder


@dataclass(frozen=True, slots=True)
class LaidHead:
    """A plan's rows as ids. `real` are those to train that are not made up, `rows` all of them."""

    plan: Plan
    labels: list[str]
    real: list[HeadRow]
    rows: list[HeadRow]
    validation: list[HeadRow]
    test: list[HeadRow]


def tune_heads(
    plans: Sequence[Plan], base: HeadBase, console: Console, together: Together
) -> Iterator[tuple[Plan, Report | str]]:
    """Tasks with a head, over one encoder: a report, and its folder written, or why there is none."""
    started = time.monotonic()
    laid: dict[str, LaidHead] = {}
    jobs = []
    for plan in plans:
        own = laid[plan.recipe.task] = lay_out_heads(plan, base, method_with_head(plan.recipe).virtual_tokens)
        job = head_job(plan.recipe.task, plan.recipe, base, own)
        announce(console, plan.recipe, len(own.rows), plan.parts, job.start.values().values(), base.label)
        jobs.append(job)
    yield from train_plans(
        plans, jobs, base, console, together, started,
        lambda ended, took: _measured(laid[ended.name], base, ended, took, console),
    )  # fmt: skip


def lay_out_heads(plan: Plan, base: HeadBase, prefix: int) -> LaidHead:
    """The plan's rows, which stand behind a prefix of so many at most. Those to train and to validate are left out
    where they are longer than `data.max_tokens`, or none of their words is labelled. Raises `BadData` where no row of a
    part is left, or where one that is measured on is longer than the base takes."""
    recipe, parts = plan.recipe, plan.parts
    head, labels = method_with_head(recipe).head, labels_of(recipe, plan.examples)
    most = positions_of(base.model)[1] - prefix
    fits = min(recipe.data.max_tokens, most)

    def encoded(examples: Sequence[Example]) -> list[HeadRow]:
        return [encode_row(example, base, head, labels) for example in examples]

    def used(name: str, examples: Sequence[Example]) -> list[HeadRow]:
        rows = [row for row in encoded(examples) if row.length <= fits]
        if not rows:
            raise BadData(
                f"every {name} row is longer than {fits} tokens, the lesser of data.max_tokens and what the base takes "
                "behind the prefix; cut the texts",
                file=examples[0].file,
            )
        return labelled(name, rows, examples[0].file)

    real, validation, test = used("train", parts.train), used("validation", parts.validation), encoded(parts.test)
    made = used("made-up", plan.extra) if plan.extra else []
    labelled("test", test, parts.test[0].file)
    for example, row in zip(parts.test, test, strict=True):
        if row.length > most:
            raise BadData(
                f"this text is {row.length} tokens, and behind the prefix the base takes {most}; cut it",
                file=example.file,
                row=example.row,
            )
    return LaidHead(plan, labels, real, [*real, *made], validation, test)


def head_job(name: str, recipe: Recipe, base: HeadBase, laid: LaidHead) -> Job:
    """A recipe's task over the rows that are laid out."""
    start = head_start(fresh_head(recipe, base, laid), method_with_head(recipe).virtual_tokens)
    return Job(name, start, laid.rows, laid.validation, recipe.train)


def fresh_head(recipe: Recipe, base: HeadBase, laid: LaidHead) -> HeadLearned:
    """The numbers that a recipe's method has of its own, by its seed."""
    torch.manual_seed(recipe.train.seed)
    return begin_prefix(method_with_head(recipe), base, len(laid.labels))


def method_with_head(recipe: Recipe) -> PTuningV2:
    """The method of a recipe that is known to be of a head."""
    assert isinstance(recipe.method, PTuningV2)
    return recipe.method


def _measured(laid: LaidHead, base: HeadBase, ended: Finished, seconds: float, console: Console) -> Report:
    """Writes the folder of what was learned, with its figures and those of what the recipe compares it with."""
    plan, recipe, labels, test = laid.plan, laid.plan.recipe, laid.labels, laid.test
    head = method_with_head(recipe).head
    meant = [row.meant(head) for row in test]

    def figures(found: Sequence[Sequence[int]], parameters: int) -> Figures:
        return Figures(len(test), score_labels(head, found, meant), parameters)

    learned = fresh_head(recipe, base, laid)
    put_head(learned, ended.values)
    tuned = figures(learned.predict(test), count(learned.parameters()))
    beside: dict[str, Figures] = {}
    if recipe.evaluate.probe:
        console.print("fitting a linear probe")
        beside["linear probe"] = figures(
            probe(base, head, len(labels), laid.real, laid.validation, test), probe_parameters(base, len(labels))
        )
    if recipe.evaluate.full is not None:
        console.print("training the whole encoder")
        torch.manual_seed(recipe.evaluate.full.seed)
        full = begin_full(base, head, len(labels))
        with _bar(console, "whole encoder", recipe.evaluate.full.steps) as watch:
            train(full, laid.rows, laid.validation, recipe.evaluate.full, watch)
        beside["full fine-tuning"] = figures(full.predict(test), count(full.parameters()))
    report = Report(
        recipe=recipe,
        base_label=base.label,
        trained=ended.trained,
        tuned=tuned,
        beside=beside,
        rows=(len(laid.rows), len(laid.validation), len(test)),
        lengths=(min(row.length for row in laid.rows), max(row.length for row in laid.rows)),
        seconds=seconds,
        device=device_words(base.device),
        labels=labels,
        base_fingerprint=base.fingerprint,
    )
    write_folder(plan.out, plan.path, learned, report)
    return report


@contextmanager
def _bar(console: Console, name: str, steps: int) -> Iterator[Callable[[Progress], None]]:
    board: Board
    with shown(console, {name: steps}) as board:
        yield lambda progress: board.see(name, progress)
