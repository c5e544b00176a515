"""Commands that need no server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.evaluation import after_tuning
from softmux.cli.output import as_json, fail
from softmux.cli.publishing import Publish, held_back, publisher, told_of
from softmux.cli.remote import DEFAULT_URL
from softmux.cli.remote import Key as ServerKey
from softmux.cli.remote import Url as ServerUrl
from softmux.cli.tuning_library import Data, Key, Redis, Tenant, Url, library

if TYPE_CHECKING:
    from softmux.tuning.write import Report

_OUT = "Where the folder goes, by default the recipe's own; of several, each under its task's name."
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Cache = Annotated[Path | None, typer.Option(help="Where data, base models and saved runs are kept.")]
AtOnce = Annotated[int, typer.Option(min=1, help="So many tasks train together; the others wait.")]
Tokens = Annotated[
    int | None, typer.Option(min=1, help="So many go through the base in one forward; by default what fits.")
]
SaveEvery = Annotated[int, typer.Option(min=0, help="Save the run every so many steps; 0: never.")]
Fresh = Annotated[bool, typer.Option(help="Begin anew where an earlier run was saved.")]
Checkpointing = Annotated[bool, typer.Option(help="Compute layers again in the backward: less memory, more time.")]
Board = Annotated[Path | None, typer.Option(help="A folder for TensorBoard's files.")]
Json = Annotated[bool, typer.Option("--json", help="Write the figures as JSON.")]


def tune(
    recipes: Annotated[list[Path], typer.Argument(help="The recipes: TOML files. Those of one base train at once.")],
    out: Annotated[Path | None, typer.Option(help=_OUT)] = None,
    device: Device = "auto",
    cache: Cache = None,
    at_once: AtOnce = 64,
    tokens: Tokens = None,
    save_every: SaveEvery = 50,
    fresh: Fresh = False,
    checkpointing: Checkpointing = False,
    tensorboard: Board = None,
    report: Annotated[bool, typer.Option(help="Write evaluation.html and .json beside each adapter.")] = True,
    json_: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    redis: Redis = None,
    data: Data = None,
    tenant: Tenant = None,
    publish: Publish = False,
) -> None:
    """Tune adapters from recipes, and write their folders with the held-out figures and an evaluation."""
    with needing_packages():
        from softmux.tuning import Together
        from softmux.tuning.run import NotAllTuned, tune_all
        from softmux.tuning.run import tune as run
    together = Together(at_once, tokens, save_every, cache and cache / "tuning", fresh, checkpointing, tensorboard)
    server = publisher(publish, url, key, elsewhere=redis is not None or data is not None)
    reports: dict[Path, Report]
    missed = None
    with library(url, key, redis, data, tenant) as found:
        try:
            if len(recipes) == 1:
                made = [run(recipes[0], out, device, cache=cache, together=together, library=found)]
            else:
                made = tune_all(recipes, out, device, cache=cache, together=together, library=found)
            reports = dict(zip(recipes, made, strict=True))
        except NotAllTuned as error:
            missed, reports = error, error.reports
    several = len(recipes) > 1
    folders = {
        one.recipe.task: path.parent if out is None else out / one.recipe.task if several else out
        for path, one in reports.items()
    }
    verdicts = after_tuning(list(reports), folders, device, cache) if report and reports else {}
    answers = {
        task: server.publish(folder, task, held_back(verdicts.get(task)) if report else None, tell=not json_)
        for task, folder in folders.items()
        if server is not None
    }
    if json_:
        tasks = {one.recipe.task: one for one in reports.values()}
        as_json([_told(one, verdicts.get(task), answers.get(task)) for task, one in tasks.items()])
    if missed is not None:
        fail(missed.message)
    if None in answers.values():
        raise typer.Exit(1)


def sweep(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a TOML file; its section [sweep] says what is tried.")],
    out: Annotated[Path | None, typer.Option(help="Where the pick goes; by default beside the recipe.")] = None,
    device: Device = "auto",
    cache: Cache = None,
    at_once: AtOnce = 64,
    tokens: Tokens = None,
    save_every: SaveEvery = 50,
    fresh: Fresh = False,
    checkpointing: Checkpointing = False,
    tensorboard: Board = None,
    json_: Json = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    redis: Redis = None,
    data: Data = None,
    tenant: Tenant = None,
) -> None:
    """Train a task in many ways side by side, and pick one by its validation rows."""
    with needing_packages():
        from softmux.tuning import Together
        from softmux.tuning.sweep import sweep as run
        from softmux.tuning.swept import figures
    together = Together(at_once, tokens, save_every, cache and cache / "tuning", fresh, checkpointing, tensorboard)
    with library(url, key, redis, data, tenant) as found:
        swept = run(recipe, out, device, cache=cache, together=together, library=found)
    if json_:
        as_json(figures(swept))


def distill(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a TOML file with a teacher, inputs and a method.")],
    out: Annotated[Path | None, typer.Option(help="Where the folder goes, by default the recipe's own.")] = None,
    device: Device = "auto",
    cache: Cache = None,
    tokens: Tokens = None,
    save_every: SaveEvery = 50,
    fresh: Fresh = False,
    checkpointing: Checkpointing = False,
    tensorboard: Board = None,
    json_: Json = False,
    url: ServerUrl = DEFAULT_URL,
    key: ServerKey = None,
    publish: Publish = False,
) -> None:
    """Distil a long prompt, a text's or an adapter's, into a short soft prompt that answers as it does."""
    with needing_packages():
        from softmux.tuning import Together
        from softmux.tuning.distilling.distill import distill as run
        from softmux.tuning.distilling.distilled import figures
    together = Together(1, tokens, save_every, cache and cache / "tuning", fresh, checkpointing, tensorboard)
    server = publisher(publish, url, key)
    distilled = run(recipe, out, device, cache=cache, together=together)
    task, answer = distilled.recipe.task, None
    if server is not None:
        answer = server.publish(out or recipe.parent, task, tell=not json_)
    if json_:
        as_json(figures(distilled) | told_of(answer))
    if server is not None and answer is None:
        raise typer.Exit(1)


def _told(report: Report, verdict: str | None, published: dict[str, Any] | None) -> dict[str, Any]:
    figures = {"tuned": report.tuned, **report.beside}
    return {
        "task": report.recipe.task,
        "base": report.base_label,
        "seconds": round(report.seconds, 1),
        "figures": {name: {"rows": held.rows, **held.values} for name, held in figures.items()},
        **({"verdict": verdict} if verdict else {}),
        **told_of(published),
    }


@contextmanager
def needing_packages() -> Iterator[None]:
    """Says in words which packages are missing for tuning."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("softmux"):
            raise  # a fault of ours, which no package mends
        fail(f"{error}: tuning needs more packages, `pip install 'softmux[tune]'` brings them")


def bench(context: typer.Context) -> None:
    """Measure this machine: mixed tasks against the ways of serving them without softmux."""
    from importlib import import_module

    raise typer.Exit(import_module("softmux.bench.__main__").main(context.args))
