"""`softmux sweep`: one task tried in many ways, all trained side by side in one batch; the pick by validation."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.layout import Layout
from softmux.tuning.bases.base import Base, load_base
from softmux.tuning.bases.head_base import HeadBase, load_head_base
from softmux.tuning.data.rows import Row
from softmux.tuning.learned.methods import lent, start_of
from softmux.tuning.plan import Plan, plan_of
from softmux.tuning.recipes.method import OWN_INITS
from softmux.tuning.recipes.recipe import PTuningV2, Recipe, Sweep, read_recipe, to_toml
from softmux.tuning.run import beginner, encode_all, fresh
from softmux.tuning.run_heads import head_job, lay_out_heads, method_with_head
from softmux.tuning.starts.beginning import Beginnings
from softmux.tuning.starts.library import Library
from softmux.tuning.swept import LEARNING_RATE, Swept, Try, figures, markdown, plot, table, words
from softmux.tuning.training.board import shown
from softmux.tuning.training.job import Job
from softmux.tuning.training.together import Together, precision, train_together

RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
RESIDUAL = "residual:"
_OF_TRAIN = {"learning_rate": LEARNING_RATE, "warmup_steps": "warm-up", "dampening": "dampening"}
RECIPE_FILE, FIGURES_FILE, TABLE_FILE, PLOT_FILE = "recipe.toml", "sweep.json", "sweep.md", "sweep.png"


def tries_of(recipe: Recipe) -> list[Try]:
    """Every combination that `recipe.sweep` lists, each once. Raises `InvalidRequest` for what can't be swept."""
    swept = recipe.sweep
    if swept == Sweep():
        swept = Sweep(learning_rates=RATES)
    found: dict[str, Try] = {}
    wholes: Sequence[BaseModel] = swept.methods or [recipe.method]
    lengths: list[int | None] = [*swept.virtual_tokens] or [None]
    inits: list[str | None] = [*swept.inits] or [None]
    hows = _hows(swept)
    for method, length, init, how in itertools.product(wholes, lengths, inits, hows):
        known, own = type(method).model_fields, method.model_dump(exclude_unset=True)
        fields: dict[str, Any] = {"virtual_tokens": length} if length and "virtual_tokens" in known else {}
        if init is not None:
            own, begins = _begun(own, known, init)
            fields |= begins
        raw = recipe.model_dump(exclude_unset=True) | {"method": own | fields}
        raw["train"] = recipe.train.model_dump(exclude_unset=True) | how
        raw.pop("sweep", None)
        recipes = tuple(
            _valid(raw | {"train": raw["train"] | {"seed": seed}}) for seed in swept.seeds or [recipe.train.seed]
        )
        choices = {}
        if swept.methods:
            choices["method"] = _words(method, fields)
        if "virtual_tokens" in fields:
            choices["virtual tokens"] = str(length)
        if init is not None and ("init" in fields or "init_from" in fields):
            choices["init"] = init
        choices |= {_OF_TRAIN[name]: f"{value:g}" for name, value in how.items()}
        found.setdefault(recipes[0].model_dump_json(), Try(choices, recipes))
    return list(found.values())


def _hows(swept: Sweep) -> list[dict[str, Any]]:
    """What is given of `[train]`, in every combination."""
    listed = {
        "learning_rate": swept.learning_rates,
        "warmup_steps": swept.warmups,
        "dampening": swept.dampenings,
    }
    given = {name: values for name, values in listed.items() if values}
    return [dict(zip(given, values, strict=True)) for values in itertools.product(*given.values())]


def _begun(method: dict[str, Any], known: Mapping[str, Any], init: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The method without another start, and the fields that `init` sets; none where the method has no such start."""
    residual = init.startswith(RESIDUAL)
    fields: dict[str, Any]
    if init in OWN_INITS:
        fields = {"init": init} if "init" in known else {}
    else:
        fields = {"init_from": init.removeprefix(RESIDUAL), "residual": residual} if "init_from" in known else {}
    if not fields:
        return method, fields
    without = ("init_from", "residual") if residual else ("init_from", "residual", "residual_rank")
    return {name: value for name, value in method.items() if name not in without}, fields


def sweep(
    recipe_path: Path,
    out: Path | None = None,
    device: str = "auto",
    *,
    base: Base | HeadBase | None = None,
    cache: Path | None = None,
    console: Console | None = None,
    together: Together | None = None,
    library: Library | None = None,
) -> Swept:
    """Trains every try at once, and writes `out` (by default `sweep` beside the recipe): the pick as a recipe, the
    figures, a table, and a plot where matplotlib is installed. Held-out rows are not looked at: `softmux tune` does.
    `library` is where tasks are looked up that a try begins from."""
    console, together = console or Console(stderr=True), together or Together()
    recipe = read_recipe(recipe_path)
    tries = tries_of(recipe)
    out = out or recipe_path.parent / "sweep"
    plan = plan_of(recipe_path, out, cache, recipe)
    if all(isinstance(one.recipes[0].method, PTuningV2) for one in tries):
        assert not isinstance(base, Base)
        base = base or load_head_base(recipe, device, cache)
        jobs = _head_jobs(tries, plan, base)
    else:
        assert not isinstance(base, HeadBase)
        base = base or load_base(recipe, device, cache)
        jobs = _word_jobs(tries, plan, base, Beginnings(base, library, console))
    console.print(f"{recipe.task}: {len(tries)} ways of tuning it, {len(jobs)} runs side by side over {base.label}")
    started = time.monotonic()
    with shown(console, {job.name: job.how.steps for job in jobs}, together.tensorboard) as board:
        finished, checkpoint = train_together(base, jobs, precision(base, recipe.train), together, board.see, console)
    ended = iter(finished)
    done = []
    for one in tries:
        own = [next(ended) for _ in one.recipes]
        done.append(Try(one.choices, one.recipes, tuple(None if e.error else e.trained for e in own)))
    swept = Swept(tuple(sorted(done, key=lambda one: one.loss)), time.monotonic() - started)
    if swept.pick.loss == float("inf"):
        checkpoint.remove()
        raise SoftmuxError("No try could be learned: lower the learning rates.")
    write(out, swept)
    checkpoint.remove()
    console.print(table(swept))
    console.print(f"the pick: {words(swept.pick)} → {out / RECIPE_FILE}, for softmux tune")
    return swept


def _word_jobs(tries: Sequence[Try], plan: Plan, base: Base, beginnings: Beginnings) -> list[Job]:
    """A job for each recipe of each try, of tasks that generate."""
    jobs = []
    laid: dict[Layout, tuple[list[Row], list[Row]]] = {}
    for label, variant in _labelled(tries):
        with lent(fresh(variant, base)) as learned:
            if learned.layout not in laid:  # tries of one length share their rows
                laid[learned.layout] = (
                    encode_all([*plan.parts.train, *plan.extra], learned, variant),
                    encode_all(plan.parts.validation, learned, variant),
                )
            start = start_of(learned)
        rows, validation = laid[learned.layout]
        begun = beginnings.of(beginner(variant, base, plan.path.parent, validation, learned.prefix), start)
        job = begun.job(label, rows, validation, variant.train, learned.prefix)
        jobs.append(replace(job, measures_start=bool(plan.recipe.sweep.inits)))
    return jobs


def _head_jobs(tries: Sequence[Try], plan: Plan, base: HeadBase) -> list[Job]:
    """A job for each recipe of each try, of tasks with a head: all share their rows."""
    variants = list(_labelled(tries))
    longest = max(method_with_head(variant).virtual_tokens for _, variant in variants)
    laid = lay_out_heads(replace(plan, recipe=variants[0][1]), base, longest)
    return [head_job(label, variant, base, laid) for label, variant in variants]


def _labelled(tries: Sequence[Try]) -> Iterator[tuple[str, Recipe]]:
    """Every recipe, under a name of its own."""
    for number, one in enumerate(tries):
        name = ", ".join(one.choices.values()) or "as it is"
        for variant in one.recipes:
            yield f"{number + 1}: {name}" + (f", seed {variant.train.seed}" if len(one.recipes) > 1 else ""), variant


def write(out: Path, swept: Swept) -> None:
    """The folder `out`, whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        pick = swept.pick.recipes[0]
        pick = pick.model_copy(update={"data": pick.data.from_below()})
        if (other := pick.evaluate.elsewhere) is not None:
            beside = pick.evaluate.model_copy(update={"elsewhere": other.from_below()})
            pick = pick.model_copy(update={"evaluate": beside})
        origin = getattr(pick.method, "init_from", None)
        if origin is not None and origin.startswith("."):
            there = str(Path("..") / origin)
            pick = pick.model_copy(update={"method": pick.method.model_copy(update={"init_from": there})})
        (scratch / RECIPE_FILE).write_text(to_toml(pick), encoding="utf-8")
        (scratch / FIGURES_FILE).write_text(json.dumps(figures(swept), indent=2) + "\n", encoding="utf-8")
        (scratch / TABLE_FILE).write_text("\n".join(markdown(swept)) + "\n", encoding="utf-8")
        plot(swept, scratch / PLOT_FILE)
        scratch.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _valid(raw: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate(raw)
    except ValueError as error:
        raise InvalidRequest(f"The sweep asks for what can't be: {error}.", param="sweep") from error


def _words(method: BaseModel, changed: Mapping[str, Any]) -> str:
    said = {k: v for k, v in method.model_dump(exclude_unset=True).items() if k not in ("kind", *changed)}
    kind = str(method.model_dump()["kind"])
    return kind + (f" ({', '.join(f'{name} {value}' for name, value in said.items())})" if said else "")
