"""Commands that need no server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.export import fetched
from softmux.cli.output import as_json, fail
from softmux.cli.remote import DEFAULT_URL, Remote
from softmux.cli.tuning_library import Data, Key, Redis, Tenant, Url, library
from softmux.errors import SoftmuxError

if TYPE_CHECKING:
    from softmux.evaluation.report import Evaluation
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
) -> None:
    """Tune adapters from recipes, and write their folders with the held-out figures and an evaluation."""
    with _needing_packages():
        from softmux.tuning import Together
        from softmux.tuning.run import tune as run
        from softmux.tuning.run import tune_all
    together = Together(at_once, tokens, save_every, cache and cache / "tuning", fresh, checkpointing, tensorboard)
    with library(url, key, redis, data, tenant) as found:
        if len(recipes) == 1:
            reports = [run(recipes[0], out, device, cache=cache, together=together, library=found)]
        else:
            reports = tune_all(recipes, out, device, cache=cache, together=together, library=found)
    verdicts: list[str | None] = [None] * len(reports)
    if report:
        folders = [
            _folder(recipe, out, one, several=len(recipes) > 1) for recipe, one in zip(recipes, reports, strict=True)
        ]
        try:
            verdicts = [found.verdict.ship for found in _evaluated(recipes, folders, device, cache)]
        except SoftmuxError as error:  # what was trained is there, whatever can be said of it
            typer.secho(f"tuned, but not evaluated: {error.message}", err=True, fg="yellow")
    if json_:
        told = [_told(one) for one in reports]
        as_json([{**one, "verdict": ship} if ship else one for one, ship in zip(told, verdicts, strict=True)])


def _folder(recipe: Path, out: Path | None, report: Report, *, several: bool) -> Path:
    """Where a tuned task lies."""
    if out is None:
        return recipe.parent
    return out / report.recipe.task if several else out


def _evaluated(recipes: Sequence[Path], folders: Sequence[Path], device: str, cache: Path | None) -> list[Evaluation]:
    from softmux.evaluation.run import Subject, evaluate_all
    from softmux.formats.folder import load_folder

    pairs = zip(recipes, folders, strict=True)
    subjects = [Subject(load_folder(folder), recipe, folder) for recipe, folder in pairs]
    return evaluate_all(subjects, device, cache=cache)


def evaluate(
    task: Annotated[str, typer.Argument(metavar="ADAPTER", help="A folder, or a served task (task@version).")],
    recipe: Annotated[Path | None, typer.Option(help="The task's recipe; by default the folder's recipe.toml.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where it is written: the folder, or TASK-evaluation.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Held-out rows at most, for a quick look.")] = None,
    device: Device = "auto",
    cache: Cache = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Try an adapter on held-out rows in many ways, and write a report with a verdict: evaluation.html and .json."""
    from softmux.evaluation.report import as_json as told
    from softmux.evaluation.run import Subject, evaluate_all
    from softmux.formats.folder import load_folder

    folder = Path(task)
    if folder.is_dir():
        subject = Subject(load_folder(folder), recipe or folder / "recipe.toml", out or folder)
    else:
        if recipe is None:
            fail(f"{task} is no folder here, and a served task brings no recipe: give --recipe", "recipe")
        files = fetched(Remote(url, key), task)[1]
        subject = Subject(files, recipe, out or Path(f"{task.replace('/', '-')}-evaluation"))
    found = evaluate_all([subject], device, cache=cache, rows=rows)
    if json_:
        as_json(told(found[0]))


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
    with _needing_packages():
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
) -> None:
    """Distil a long prompt, a text's or an adapter's, into a short soft prompt that answers as it does."""
    with _needing_packages():
        from softmux.tuning import Together
        from softmux.tuning.distill import distill as run
        from softmux.tuning.distilled import figures
    together = Together(1, tokens, save_every, cache and cache / "tuning", fresh, checkpointing, tensorboard)
    distilled = run(recipe, out, device, cache=cache, together=together)
    if json_:
        as_json(figures(distilled))


def _told(report: Report) -> dict[str, Any]:
    figures = {"tuned": report.tuned, **report.beside}
    return {
        "task": report.recipe.task,
        "base": report.base_label,
        "seconds": round(report.seconds, 1),
        "figures": {name: {"rows": held.rows, **held.values} for name, held in figures.items()},
    }


@contextmanager
def _needing_packages() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        fail(f"{error}: tuning needs more packages, `pip install 'softmux[tune]'` brings them")


def bench(context: typer.Context) -> None:
    """Measure this machine: mixed tasks against the ways of serving them without softmux."""
    from importlib import import_module

    raise typer.Exit(import_module("softmux.bench.__main__").main(context.args))
