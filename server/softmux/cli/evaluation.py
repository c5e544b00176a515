"""`softmux evaluate`, and the evaluation that `softmux tune` ends with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from softmux.cli.export import fetched
from softmux.cli.output import as_json, fail
from softmux.cli.remote import DEFAULT_URL, Json, Key, Remote, Url
from softmux.errors import SoftmuxError

Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Cache = Annotated[Path | None, typer.Option(help="Where data and base models are kept.")]


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


def after_tuning(
    recipes: Sequence[Path], folders: Mapping[str, Path], device: str, cache: Path | None
) -> dict[str, str]:
    """Evaluates what was tuned, each recipe's where `softmux tune` has written it (`folders`, by task); whether to ship
    each task. What can't be evaluated is said and no more: what was trained is there."""
    from softmux.evaluation.run import Subject, evaluate_all
    from softmux.formats.folder import load_folder

    subjects = [
        Subject(load_folder(folder), recipe, folder) for recipe, folder in zip(recipes, folders.values(), strict=True)
    ]
    try:
        found = evaluate_all(subjects, device, cache=cache)
    except SoftmuxError as error:
        typer.secho(f"tuned, but not evaluated: {error.message}", err=True, fg="yellow")
        return {}
    return {one.task: one.verdict.ship for one in found}
