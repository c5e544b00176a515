"""What commands write: tables for a person, JSON where `--json` asks for it, errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import typer


def fail(message: str, param: str | None = None) -> NoReturn:
    """Ends the command with exit code 1."""
    typer.secho(f"error: {message}" + (f" [{param}]" if param else ""), err=True, fg="red")
    raise typer.Exit(1)


def as_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def done(words: str, json_: bool, **told: Any) -> None:
    """What a command says that has nothing to show but what it did."""
    if json_:
        as_json(told)
    else:
        typer.echo(words)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def facts(pairs: Iterable[tuple[str, object]]) -> None:
    """`name  value` lines; what is None is left out."""
    known = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        typer.echo(f"{name:<{width}}  {value}")
