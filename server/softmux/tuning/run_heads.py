"""Tasks with a head, from their rows to their folders."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console

from softmux.tuning.board import Board, shown
from softmux.tuning.device_words import device_words
from softmux.tuning.evaluate import Figures, score_labels
from softmux.tuning.heads import HeadBase, begin_full, begin_prefix, encode_row, labels_of
from softmux.tuning.plan import Plan, announce, count
from softmux.tuning.probe import probe, probe_parameters
from softmux.tuning.recipe import PTuningV2
from softmux.tuning.trainer import Progress, train
from softmux.tuning.write import Report, write_folder


def tune_head(plan: Plan, base: HeadBase, console: Console) -> Report:
    """A task with a head: the learned prefix, and beside it what the recipe asks to compare it with."""
    recipe, parts = plan.recipe, plan.parts
    assert isinstance(recipe.method, PTuningV2)
    head, labels = recipe.method.head, labels_of(recipe, plan.examples)
    real, made, validation, test = (
        [encode_row(example, base, head, labels) for example in some]
        for some in (parts.train, plan.extra, parts.validation, parts.test)
    )
    rows = [row for row in (*real, *made) if row.length <= recipe.data.max_tokens]
    meant = [row.targets if head == "sequence" else [row.targets[word] for word in row.words] for row in test]

    def figures(found: Sequence[Sequence[int]], parameters: int) -> Figures:
        return Figures(len(test), score_labels(head, found, meant), parameters)

    started = time.monotonic()
    torch.manual_seed(recipe.train.seed)
    learned = begin_prefix(recipe.method, base, len(labels))
    announce(console, recipe, len(rows), parts, learned.parameters(), base.label)
    with _bar(console, recipe.task, recipe.train.steps) as watch:
        trained = train(learned, rows, validation, recipe.train, watch)
    seconds = time.monotonic() - started
    tuned = figures(learned.predict(test), count(learned.parameters()))
    beside: dict[str, Figures] = {}
    if recipe.evaluate.probe:
        console.print("fitting a linear probe")
        beside["linear probe"] = figures(
            probe(base, head, len(labels), real, validation, test), probe_parameters(base, len(labels))
        )
    if recipe.evaluate.full is not None:
        console.print("training the whole encoder")
        torch.manual_seed(recipe.evaluate.full.seed)
        full = begin_full(base, head, len(labels))
        with _bar(console, "whole encoder", recipe.evaluate.full.steps) as watch:
            train(full, rows, validation, recipe.evaluate.full, watch)
        beside["full fine-tuning"] = figures(full.predict(test), count(full.parameters()))
    report = Report(
        recipe=recipe,
        base_label=base.label,
        trained=trained,
        tuned=tuned,
        beside=beside,
        rows=(len(rows), len(validation), len(test)),
        lengths=(min(row.length for row in rows), max(row.length for row in rows)),
        seconds=seconds,
        device=device_words(base.device),
        labels=labels,
        base_fingerprint=base.fingerprint,
    )
    write_folder(plan.out, plan.path, learned, report)
    console.print(", ".join(f"{name} {value:.3f}" for name, value in report.tuned.values.items()), f"→ {plan.out}")
    return report


@contextmanager
def _bar(console: Console, name: str, steps: int) -> Iterator[Callable[[Progress], None]]:
    board: Board
    with shown(console, {name: steps}) as board:
        yield lambda progress: board.see(name, progress)
