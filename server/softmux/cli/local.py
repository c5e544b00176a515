"""Commands that need no server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.output import as_json, fail

if TYPE_CHECKING:
    from softmux.tuning.write import Report


def tune(
    recipes: Annotated[list[Path], typer.Argument(help="The recipes: TOML files. Those of one base train at once.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the folder goes, by default the recipe's own; of several, each under its task's name."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where data, base models and saved runs are kept.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="So many tasks train together; the others wait.")] = 64,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="So many go through the base in one forward; by default what fits.")
    ] = None,
    save_every: Annotated[int, typer.Option(min=0, help="Save the run every so many steps; 0: never.")] = 50,
    fresh: Annotated[bool, typer.Option(help="Begin anew where an earlier run was saved.")] = False,
    checkpointing: Annotated[
        bool, typer.Option(help="Compute layers again in the backward: less memory, a third more time.")
    ] = False,
    tensorboard: Annotated[Path | None, typer.Option(help="A folder for TensorBoard's files.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Write the held-out figures as JSON.")] = False,
) -> None:
    """Tune adapters from recipes, and write their folders with the held-out figures."""
    try:
        from softmux.tuning.run import tune as run
        from softmux.tuning.run import tune_all
        from softmux.tuning.together import Together
    except ModuleNotFoundError as error:
        fail(f"{error}: tuning needs more packages, `pip install 'softmux[tune]'` brings them")
    together = Together(
        at_once=at_once,
        tokens=tokens,
        save_every=save_every,
        kept=None if cache is None else cache / "tuning",
        fresh=fresh,
        checkpointing=checkpointing,
        tensorboard=tensorboard,
    )
    if len(recipes) == 1:
        reports = [run(recipes[0], out, device, cache=cache, together=together)]
    else:
        reports = tune_all(recipes, out, device, cache=cache, together=together)
    if json_:
        as_json([_told(report) for report in reports])


def _told(report: Report) -> dict[str, Any]:
    figures = {"tuned": report.tuned, **report.beside}
    return {
        "task": report.recipe.task,
        "base": report.base_label,
        "seconds": round(report.seconds, 1),
        "figures": {name: {"rows": held.rows, **held.values} for name, held in figures.items()},
    }


def bench(context: typer.Context) -> None:
    """Measure this machine: mixed tasks against the ways of serving them without softmux."""
    from importlib import import_module

    raise typer.Exit(import_module("softmux.bench.__main__").main(context.args))
