"""`softmux tune`: from a recipe to an adapter's folder.

read the recipe → load the rows → split → lay out → train → measure on the held-out rows → write the folder
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from softmux.tuning import sources
from softmux.tuning.base import Base, load_base
from softmux.tuning.data import BadData, Example
from softmux.tuning.evaluate import Figures, evaluate, score_labels
from softmux.tuning.heads import HeadBase, begin_full, begin_prefix, encode_row, labels_of, load_head_base
from softmux.tuning.methods import Learned, begin
from softmux.tuning.probe import probe, probe_parameters
from softmux.tuning.recipe import PTuningV2, Recipe, read_recipe
from softmux.tuning.rows import Row, encode
from softmux.tuning.split import Split, split
from softmux.tuning.trainer import Progress, train
from softmux.tuning.write import Report, Saved, write_folder


def tune(
    recipe_path: Path,
    out: Path | None = None,
    device: str = "auto",
    *,
    base: Base | HeadBase | None = None,
    cache: Path | None = None,
    console: Console | None = None,
) -> Report:
    """Tunes the recipe's task and writes its folder to `out`, by default the recipe's own folder.

    `device` is `auto`, `cpu` or `cuda`; `base` takes the place of the recipe's base where it is loaded already.
    Progress goes to `console` (default: stderr). Raises `InvalidRequest` for a bad recipe, `BadData` for bad rows,
    `FetchFailed` where data or base can't be had. Nothing is written unless everything succeeded.
    """
    console = console or Console(stderr=True)
    recipe = read_recipe(recipe_path)
    examples = sources.load(recipe.data, recipe_path.parent, cache)
    parts = split(examples, recipe.train.validation_rows)
    extra = sources.load_extra(recipe.data, recipe.train.seed, cache)
    if isinstance(recipe.method, PTuningV2):
        assert not isinstance(base, Base)
        learned, report = _tune_head(
            recipe, base or load_head_base(recipe, device, cache), examples, parts, extra, console
        )
    else:
        assert not isinstance(base, HeadBase)
        learned, report = _tune_words(recipe, base or load_base(recipe, device, cache), examples, parts, extra, console)
    out = out or recipe_path.parent
    write_folder(out, recipe_path, learned, report)
    console.print(", ".join(f"{name} {value:.3f}" for name, value in report.tuned.values.items()), f"→ {out}")
    return report


def _tune_words(
    recipe: Recipe, base: Base, examples: Sequence[Example], parts: Split, extra: Sequence[Example], console: Console
) -> tuple[Saved, Report]:
    """A task that generates."""
    assert not isinstance(recipe.method, PTuningV2)
    started = time.monotonic()
    torch.manual_seed(recipe.train.seed)
    learned = begin(recipe.method, base)
    rows = encode_all([*parts.train, *extra], learned, recipe)
    validation = encode_all(parts.validation, learned, recipe)
    _announce(console, recipe, len(rows), parts, learned.parameters(), base.label)
    with _bar(console, recipe.train.steps) as watch:
        trained = train(learned, rows, validation, recipe.train, watch)
    console.print("measuring on the held-out rows")
    labels = _fixed_answers(examples) if recipe.evaluate.metric == "exact" else []
    tuned = evaluate(base, learned, parts.test, recipe.evaluate, learned.layout, labels)
    beside = {}
    if recipe.evaluate.bare:
        words = "the same words without learned tokens" if recipe.template else "the bare model"
        with learned.bare():
            beside[words] = evaluate(base, None, parts.test, recipe.evaluate, learned.layout, labels)
    return learned, Report(
        recipe=recipe,
        base_label=base.label,
        trained=trained,
        tuned=tuned,
        beside=beside,
        rows=(len(rows), len(validation), len(parts.test)),
        lengths=(min(row.prompt_tokens for row in rows), max(row.prompt_tokens for row in rows)),
        seconds=time.monotonic() - started,
        device=_device_words(base.device),
    )


def _tune_head(
    recipe: Recipe,
    base: HeadBase,
    examples: Sequence[Example],
    parts: Split,
    extra: Sequence[Example],
    console: Console,
) -> tuple[Saved, Report]:
    """A task with a head: the learned prefix, and beside it what the recipe asks to compare it with."""
    assert isinstance(recipe.method, PTuningV2)
    head, labels = recipe.method.head, labels_of(recipe, examples)
    real, made, validation, test = (
        [encode_row(example, base, head, labels) for example in some]
        for some in (parts.train, extra, parts.validation, parts.test)
    )
    rows = [row for row in (*real, *made) if row.length <= recipe.data.max_tokens]
    meant = [row.targets if head == "sequence" else [row.targets[word] for word in row.words] for row in test]

    def figures(found: Sequence[Sequence[int]], parameters: int) -> Figures:
        return Figures(len(test), score_labels(head, found, meant), parameters)

    started = time.monotonic()
    torch.manual_seed(recipe.train.seed)
    learned = begin_prefix(recipe.method, base, len(labels))
    _announce(console, recipe, len(rows), parts, learned.parameters(), base.label)
    with _bar(console, recipe.train.steps) as watch:
        trained = train(learned, rows, validation, recipe.train, watch)
    seconds = time.monotonic() - started
    tuned = figures(learned.predict(test), _count(learned.parameters()))
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
        with _bar(console, recipe.evaluate.full.steps) as watch:
            train(full, rows, validation, recipe.evaluate.full, watch)
        beside["full fine-tuning"] = figures(full.predict(test), _count(full.parameters()))
    return learned, Report(
        recipe=recipe,
        base_label=base.label,
        trained=trained,
        tuned=tuned,
        beside=beside,
        rows=(len(rows), len(validation), len(test)),
        lengths=(min(row.length for row in rows), max(row.length for row in rows)),
        seconds=seconds,
        device=_device_words(base.device),
        labels=labels,
        base_fingerprint=base.fingerprint,
    )


def _announce(
    console: Console, recipe: Recipe, rows: int, parts: Split, learned: Iterable[torch.nn.Parameter], base: str
) -> None:
    console.print(
        f"{recipe.task}: {rows} rows to train, {len(parts.validation)} to validate, {len(parts.test)} held out; "
        f"{_count(learned):,} numbers to learn over {base}"
    )


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def encode_all(examples: Sequence[Example], learned: Learned, recipe: Recipe) -> list[Row]:
    """The rows that fit into `data.max_tokens`. Raises `BadData` where none does."""
    base = learned.base
    end_id = base.end_id if recipe.train.end_token else None
    rows = [encode(example, learned.layout, base.encoder, base.vocab_size, end_id) for example in examples]
    kept = [row for row in rows if row.length <= recipe.data.max_tokens]
    if not kept:
        raise BadData(
            f"every row is longer than data.max_tokens = {recipe.data.max_tokens} tokens; raise it",
            file=examples[0].file,
        )
    return kept


def _fixed_answers(examples: Sequence[Example]) -> list[str]:
    return sorted({example.answer for example in examples})


@contextmanager
def _bar(console: Console, steps: int) -> Iterator[Callable[[Progress], None]]:
    """A progress bar with the running loss; it shows on a terminal alone."""
    columns = (TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"))
    with Bar(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("loss …", total=steps)
        mean: float | None = None

        def watch(progress: Progress) -> None:
            nonlocal mean
            mean = progress.loss if mean is None else 0.95 * mean + 0.05 * progress.loss
            held = "" if progress.validation is None else f" · validation {progress.validation:.4f}"
            bar.update(task, completed=progress.step, description=f"loss {mean:.4f}{held}")

        yield watch


def _device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
