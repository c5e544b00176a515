"""Commands that need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softmux.cli.output import fail


def tune(
    recipe: Annotated[Path, typer.Argument(help="The recipe: a TOML file.")],
    out: Annotated[Path | None, typer.Option(help="Where the folder goes; by default the recipe's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    cache: Annotated[Path | None, typer.Option(help="Where data and base models are kept.")] = None,
) -> None:
    """Tune an adapter from a recipe, and write its folder with the held-out figures."""
    try:
        from softmux.tuning.run import tune as run

        run(recipe, out, device, cache=cache)
    except ModuleNotFoundError as error:
        fail(f"{error}: tuning needs more packages, `pip install 'softmux[tune]'` brings them")


def bench(context: typer.Context) -> None:
    """Measure this machine: mixed tasks against the ways of serving them without softmux."""
    from importlib import import_module

    raise typer.Exit(import_module("softmux.bench.__main__").main(context.args))
