"""`softmux evaluate`, and what `softmux tune` ends with: adapters and their recipes in, a report for each out.

read the recipes → load the rows → plan what is tried → ask the engine everything, all tasks of a base at once → figures
→ verdict → the page and its JSON
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from softmux import __version__
from softmux.evaluation.examiner import Ask, Examiner, Said
from softmux.evaluation.measure import Measured
from softmux.evaluation.page import page
from softmux.evaluation.report import JSON_FILE, PAGE_FILE, Evaluation, Nearest, as_json
from softmux.evaluation.scores import METRIC_NAMES, METRICS
from softmux.evaluation.task import Task
from softmux.evaluation.trials import Plan, by_hash, plan
from softmux.evaluation.verdict import judge, percent
from softmux.formats.folder import Adapter, load_folder
from softmux.formats.parts import PromptPart
from softmux.inspection.nearest import nearest
from softmux.settings import Settings
from softmux.tuning import sources
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import Split, split
from softmux.tuning.recipes.recipe import Recipe, read_recipe

_NEAREST = 5


@dataclass(frozen=True, slots=True)
class Subject:
    """An adapter's files, the recipe of its task, and the folder that its report goes into."""

    files: Mapping[str, bytes]
    recipe: Path
    out: Path


@dataclass(frozen=True, slots=True)
class _Read:
    """A subject with its recipe read and its rows split."""

    subject: Subject
    recipe: Recipe
    parts: Split
    held_out: int
    elsewhere: Sequence[Example]


def evaluate(
    folder: Path,
    recipe: Path | None = None,
    out: Path | None = None,
    device: str = "auto",
    *,
    cache: Path | None = None,
    rows: int | None = None,
    console: Console | None = None,
) -> Evaluation:
    """The report of the adapter in `folder`, written into it or into `out`. `recipe` by default is the folder's own.
    Raises as `evaluate_all` does."""
    subject = Subject(load_folder(folder), recipe or folder / "recipe.toml", out or folder)
    return evaluate_all([subject], device, cache=cache, rows=rows, console=console)[0]


def evaluate_all(
    subjects: Sequence[Subject],
    device: str = "auto",
    *,
    cache: Path | None = None,
    rows: int | None = None,
    console: Console | None = None,
) -> list[Evaluation]:
    """A report for each, in order, written into its folder. All tasks of one base run in one engine, in the same steps.

    `device` is `auto`, `cpu` or `cuda`; `rows` cuts the held-out rows of each, for a quick look. Raises
    `InvalidRequest` for a recipe that is not the adapter's, `BadData` for rows, `InvalidAdapter` for files.
    """
    console = console or Console(stderr=True)
    read = [_read(subject, cache, rows) for subject in subjects]
    found: dict[int, Evaluation] = {}
    for base in dict.fromkeys(one.recipe.base for one in read):
        numbers = [i for i, one in enumerate(read) if one.recipe.base == base]
        of_base = _evaluated([read[i] for i in numbers], device, cache, console)
        found |= dict(zip(numbers, of_base, strict=True))
    for number, one in sorted(found.items()):
        write(one, read[number].subject.out)
        ship = f"{one.verdict.ship}: {one.metric} {percent(one.overall)}"
        place = read[number].subject.out / PAGE_FILE
        console.print(f"{one.task}: {ship} → {place}", highlight=False, soft_wrap=True)
    return [found[number] for number in range(len(read))]


def write(found: Evaluation, out: Path) -> None:
    """The page and its JSON, each whole or not at all."""
    out.mkdir(parents=True, exist_ok=True)
    told = json.dumps(as_json(found), indent=2, ensure_ascii=False) + "\n"
    for name, text in ((JSON_FILE, told), (PAGE_FILE, page(found))):
        scratch = out / f".{name}.{os.getpid()}"
        scratch.write_text(text, encoding="utf-8")
        scratch.rename(out / name)


def _read(subject: Subject, cache: Path | None, rows: int | None) -> _Read:
    recipe, folder = read_recipe(subject.recipe), subject.recipe.parent
    labels = list(recipe.labels.values()) if isinstance(recipe.labels, dict) else recipe.labels
    parts = split(sources.load(recipe.data, folder, cache, labels), recipe.train.validation_rows)
    held_out = len(parts.test)
    if rows is not None:
        parts = replace(parts, test=tuple(sorted(parts.test, key=by_hash)[:rows]))
    other = recipe.evaluate.elsewhere
    return _Read(
        subject, recipe, parts, held_out, sources.load(other, folder, cache, labels) if other is not None else []
    )


def _evaluated(read: Sequence[_Read], device: str, cache: Path | None, console: Console) -> list[Evaluation]:
    """Of one base."""
    from transformers import AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    from softmux.tuning.bases.base import label_of, source_of

    disable_progress_bar()
    _give_back_memory()
    began = time.monotonic()
    recipe = read[0].recipe
    settings = Settings.model_validate(
        {"model": source_of(recipe, cache), "device": device, "dtype": "float32", "host": "127.0.0.1"}
    )
    with Examiner(settings, [one.subject.files for one in read]) as examiner:
        spec = examiner.engine.spec
        tokenizer: Any = AutoTokenizer.from_pretrained(settings.model, trust_remote_code=False)
        planned: list[tuple[Task, Plan]] = []
        for number, (one, adapter) in enumerate(zip(read, examiner.adapters, strict=True)):
            task = Task.of(number, one.recipe, adapter.manifest, spec, tokenizer, one.parts)
            planned.append((task, plan(task, one.elsewhere)))
        asks, places = _laid_end_to_end(planned)
        names = ", ".join(task.recipe.task for task, _ in planned)
        console.print(f"evaluating {names}: {len(asks):,} inputs", highlight=False, soft_wrap=True)
        with _bar(console, len(asks)) as told:
            said = examiner.answers(asks, planned[0][0].text, told)
        table = examiner.engine.model.embedding.weight
        seconds = time.monotonic() - began
        where = _Where(label_of(recipe), _device(spec.device), seconds, len(asks))
        return [
            _told(task, made, {name: said[at] for name, at in place.items()}, adapter, where, table, one.held_out)
            for one, (task, made), place, adapter in zip(read, planned, places, examiner.adapters, strict=True)
        ]


def _give_back_memory() -> None:
    """What a training has left behind: the engine takes what the card has free."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _laid_end_to_end(planned: Sequence[tuple[Task, Plan]]) -> tuple[list[Ask], list[dict[str, slice]]]:
    """Every input of every trial of every task, and where each trial's are."""
    asks: list[Ask] = []
    places = []
    for task, made in planned:
        place = {}
        for name, trial in made.trials.items():
            begin = len(asks)
            asks += task.asks(trial)
            place[name] = slice(begin, len(asks))
        places.append(place)
    return asks, places


@dataclass(frozen=True, slots=True)
class _Where:
    """What all reports of a run have in common."""

    base: str
    device: str
    seconds: float
    asked: int


def _told(
    task: Task,
    made: Plan,
    said: Mapping[str, Sequence[Said]],
    adapter: Adapter,
    where: _Where,
    table: Any,
    held_out: int,
) -> Evaluation:
    measured, recipe, manifest = Measured.of(task, made, said), task.recipe, task.manifest
    metric = METRIC_NAMES[recipe.evaluate.metric]
    words = METRICS[metric]
    notes = list(adapter.warnings)
    if measured.copies:
        notes.append("Its answers repeat words of the input: what is changed there is shown, but not judged.")
    if task.left_out:
        notes.append(f"{task.left_out} held-out rows are longer than the base's context, and are left out.")
    if manifest.trained_lengths is None:
        notes.append("Its softmux.json does not say trained_lengths: they are those of the recipe's training rows.")
    return Evaluation(
        task=recipe.task,
        title=recipe.title,
        base=where.base,
        method=manifest.method,
        digest=manifest.digest,
        parameters=manifest.parameters,
        virtual_tokens=manifest.virtual_tokens,
        data=sources.about(recipe.data),
        metric=metric,
        metric_words=words,
        rows=(len(task.parts.train), len(task.parts.validation), held_out),
        measured=len(task.parts.test),
        trained_lengths=task.trained,
        shots=len(made.shots),
        overall=measured.overall,
        compared=tuple(measured.compared(labels=False)),
        compared_labels=tuple(measured.compared(labels=True)),
        lengths=tuple(measured.lengths()),
        beyond=tuple(measured.beyond()),
        changes=tuple(measured.changes()),
        domain=tuple(measured.domain()),
        distances=tuple(measured.distances()),
        around=measured.around(),
        nearest=tuple(_nearest(task, adapter, table)),
        mistakes=tuple(measured.mistakes(said["plain"])),
        notes=tuple(notes),
        verdict=judge(measured.findings()),
        seed=recipe.evaluate.seed,
        asked=where.asked,
        seconds=round(where.seconds, 1),
        device=where.device,
        version=__version__,
    )


def _nearest(task: Task, adapter: Adapter, table: Any) -> Iterator[Nearest]:
    for part in adapter.parts:
        if isinstance(part, PromptPart) and part.vectors.shape[1] == table.shape[1]:
            for number, found in enumerate(nearest(part.vectors, table.detach().cpu(), _NEAREST)):
                yield Nearest(number, tuple((str(task.tokenizer.decode([token])), cosine) for token, cosine in found))


def _device(name: str) -> str:
    import torch

    from softmux.tuning.bases.device_words import device_words

    return device_words(torch.device(name))


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task("evaluating", total=total)
        yield lambda done: bar.update(shown, completed=done)
