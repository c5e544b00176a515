"""`softmux tune`: from recipes to adapters' folders.

read the recipes → load the rows → split → lay out → train, all tasks of a base at once → measure on the held-out rows
→ write the folders
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.tuning.bases.base import Base, load_base
from softmux.tuning.bases.device_words import device_words
from softmux.tuning.bases.head_base import HeadBase, load_head_base
from softmux.tuning.data.examples import BadData, Example
from softmux.tuning.data.rows import Row, encode
from softmux.tuning.evaluate import evaluate
from softmux.tuning.learned.methods import Learned, begin, lent, put, start_of
from softmux.tuning.plan import Plan, announce, answers_of, plan_of
from softmux.tuning.recipes.recipe import MethodRecipe, PTuningV2, Recipe
from softmux.tuning.run_heads import tune_heads
from softmux.tuning.starts.beginning import Beginner, Beginning, Beginnings
from softmux.tuning.starts.library import Library
from softmux.tuning.starts.transfer import saved_method
from softmux.tuning.train_plans import train_plans
from softmux.tuning.training.job import Finished
from softmux.tuning.training.together import Together
from softmux.tuning.write import Report, write_folder


class NotAllTuned(SoftmuxError):
    """Tasks could not be learned. `reports` are the others', by their recipes' paths: their folders are written."""

    def __init__(self, message: str, reports: dict[Path, Report]) -> None:
        super().__init__(message)
        self.reports = reports


def tune(
    recipe_path: Path,
    out: Path | None = None,
    device: str = "auto",
    *,
    base: Base | HeadBase | None = None,
    cache: Path | None = None,
    console: Console | None = None,
    together: Together | None = None,
    library: Library | None = None,
) -> Report:
    """Tunes the recipe's task and writes its folder to `out`, by default the recipe's own folder.

    `device` is `auto`, `cpu` or `cuda`; `base` takes the place of the recipe's base where it is loaded already;
    `library` is where an `init_from` that names a task is looked up. Progress goes to `console` (default: stderr).
    Raises `InvalidRequest` for a bad recipe, `BadData` for bad rows, `FetchFailed` where data or base can't be had.
    Nothing is written unless everything succeeded.
    """
    plan = plan_of(recipe_path, out or recipe_path.parent, cache)
    console, together = console or Console(stderr=True), together or Together()
    return _run([plan], device, base, cache, console, together, library)[0]


def tune_all(
    recipes: Sequence[Path],
    out: Path | None = None,
    device: str = "auto",
    *,
    cache: Path | None = None,
    console: Console | None = None,
    together: Together | None = None,
    library: Library | None = None,
) -> list[Report]:
    """`tune` for several recipes: those of one base are trained at once. Each folder goes into `out` under its task's
    name, by default beside its recipe. Raises `NotAllTuned` where a task's loss stops being a number, when the others
    are written."""
    plans = [plan_of(path, path.parent, cache) for path in recipes]
    if out is not None:
        plans = [replace(plan, out=out / plan.recipe.task) for plan in plans]
    for task, count in Counter(plan.recipe.task for plan in plans).items():
        if count > 1:
            raise InvalidRequest(f"{count} recipes are of the task {task}: give each its own name.", param="task")
    for folder, count in Counter(plan.out.resolve() for plan in plans).items():
        if count > 1:
            raise InvalidRequest(
                f"{count} recipes would write the folder {folder}: give each its own, or an --out for all.",
                param="out",
            )
    return _run(plans, device, None, cache, console or Console(stderr=True), together or Together(), library)


def _run(
    plans: Sequence[Plan],
    device: str,
    base: Base | HeadBase | None,
    cache: Path | None,
    console: Console,
    together: Together,
    library: Library | None,
) -> list[Report]:
    reports: dict[Path, Report] = {}
    failed = []
    groups: dict[tuple[str, bool | None, bool], list[Plan]] = {}
    for plan in plans:
        recipe = plan.recipe
        has_head = isinstance(recipe.method, PTuningV2)
        groups.setdefault((recipe.base, recipe.train.bfloat16, has_head), []).append(plan)
    for (_, _, has_head), group in groups.items():
        ended: Iterable[tuple[Plan, Report | str]]
        if has_head:
            assert not isinstance(base, Base)
            head_base = base or load_head_base(group[0].recipe, device, cache)
            ended = tune_heads(group, head_base, console, together)
        else:
            assert not isinstance(base, HeadBase)
            words_base = base or load_base(group[0].recipe, device, cache)
            ended = _tune_words(group, words_base, console, together, library)
        for plan, what in ended:
            if isinstance(what, Report):
                reports[plan.path] = what
            else:
                failed.append(f"{plan.recipe.task}: {what}" if len(plans) > 1 else what)
    if failed:
        raise NotAllTuned(" ".join(failed), reports)
    return [reports[plan.path] for plan in plans]


@dataclass(frozen=True, slots=True)
class _Laid:
    """A plan's rows, laid out, and what its task begins from."""

    plan: Plan
    rows: list[Row]
    validation: list[Row]
    begun: Beginning


def _tune_words(
    plans: Sequence[Plan], base: Base, console: Console, together: Together, library: Library | None
) -> Iterator[tuple[Plan, Report | str]]:
    """Tasks that generate, over one base: a report, and its folder written, or why there is none."""
    started = time.monotonic()
    laid: dict[str, _Laid] = {}
    jobs = []
    beginnings = Beginnings(base, library, console)
    for plan in plans:
        recipe = plan.recipe
        with lent(fresh(recipe, base)) as learned:
            rows = encode_all([*plan.parts.train, *plan.extra], learned, recipe)
            validation = encode_all(plan.parts.validation, learned, recipe)
            test = [encode(one, learned.layout, base.encoder, base.vocab_size, None) for one in plan.parts.test]
            base.check_room(plan.parts.test, test, learned.prefix, recipe.evaluate.max_tokens)
            start = start_of(learned)
        begun = beginnings.of(beginner(recipe, base, plan.path.parent, validation, learned.prefix), start)
        laid[recipe.task] = _Laid(plan, rows, validation, begun)
        announce(console, recipe, len(rows), plan.parts, begun.start.values().values(), base.label)
        jobs.append(begun.job(recipe.task, rows, validation, recipe.train, learned.prefix))
    yield from train_plans(
        plans, jobs, base, console, together, started,
        lambda ended, took: _measured(laid[ended.name], base, ended, took),
    )  # fmt: skip


def _measured(laid: _Laid, base: Base, ended: Finished, seconds: float) -> Report:
    """Writes the folder of what was learned, with its figures."""
    plan, recipe = laid.plan, laid.plan.recipe
    measuring = time.monotonic()
    with lent(fresh(recipe, base, saved_method(recipe.method, laid.begun.origin))) as learned:
        put(learned, laid.begun.start.folded(ended.values))
        learned.train(False)
        labels = _fixed_answers(plan.examples) if recipe.evaluate.metric == "exact" else []
        tuned = evaluate(base, learned, plan.parts.test, recipe.evaluate, learned.layout, labels)
        beside = {}
        if recipe.evaluate.bare:
            words = "the same words without learned tokens" if recipe.template else "the bare model"
            with learned.bare():
                beside[words] = evaluate(base, None, plan.parts.test, recipe.evaluate, learned.layout, labels)
        report = Report(
            recipe=recipe,
            base_label=base.label,
            trained=ended.trained,
            tuned=tuned,
            beside=beside,
            rows=(len(laid.rows), len(laid.validation), len(plan.parts.test)),
            lengths=(min(row.prompt_tokens for row in laid.rows), max(row.prompt_tokens for row in laid.rows)),
            seconds=seconds + time.monotonic() - measuring,
            device=device_words(base.device),
            begun=laid.begun.words,
            tried=laid.begun.scores,
        )
        write_folder(plan.out, plan.path, learned, report)
    return report


def fresh(recipe: Recipe, base: Base, method: MethodRecipe | None = None) -> Learned:
    """The numbers that a recipe's method (or `method`) has of its own, by its seed."""
    method = method or recipe.method
    assert not isinstance(method, PTuningV2)
    base.check(method, recipe.train)
    torch.manual_seed(recipe.train.seed)
    return begin(method, base, answers_of(recipe) or ())


def beginner(recipe: Recipe, base: Base, folder: Path, validation: Sequence[Row], prefix: int) -> Beginner:
    """A recipe's task, as it is to begin."""
    return Beginner(
        recipe.task, recipe.method, recipe.train, folder, lambda method: fresh(recipe, base, method), validation, prefix
    )


def encode_all(examples: Sequence[Example], learned: Learned, recipe: Recipe) -> list[Row]:
    """The rows that fit into `data.max_tokens`, and into the base. Raises `BadData` where none does."""
    base = learned.base
    end_id = base.end_id if recipe.train.end_token else None
    rows = [encode(example, learned.layout, base.encoder, base.vocab_size, end_id) for example in examples]
    kept = [row for row in rows if row.length <= recipe.data.max_tokens]
    if not kept:
        raise BadData(
            f"every row is longer than data.max_tokens = {recipe.data.max_tokens} tokens; raise it",
            file=examples[0].file,
        )
    fitting = base.fitting(kept, learned.prefix)
    if not fitting:
        base.check_room(examples, rows, learned.prefix)
    return fitting


def _fixed_answers(examples: Sequence[Example]) -> list[str]:
    return sorted({example.answer for example in examples})
