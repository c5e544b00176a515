"""`softmux doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softmux.cli.inspection import Quantization
from softmux.cli.output import as_json, fail

_MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "red")}


def doctor(
    model: Annotated[str | None, typer.Option(help="The base to look at: a folder, or a hub id.")] = None,
    redis: Annotated[str | None, typer.Option(help="redis://… of a real server; else the embedded one.")] = None,
    data: Annotated[Path | None, typer.Option(help="The server's data folder.")] = None,
    host: Annotated[str | None, typer.Option(help="Where it is to listen.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="On which port.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    quantization: Annotated[Quantization | None, typer.Option(help="Of the base's weights.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Look at what a server needs here, as its options or SOFTMUX_… say. Exit code 1 if it can't run."""
    from dataclasses import asdict

    from pydantic import ValidationError

    from softmux.doctor import examine, worst
    from softmux.settings import Settings

    given = {"model": model, "redis": redis, "data": data, "host": host, "port": port, "device": device,
             "dtype": dtype, "quantization": quantization}  # fmt: skip
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        fail(f"--{name.replace('_', '-')} (or SOFTMUX_{name.upper()}): {first['msg']}")
    checks = []
    for check in examine(settings):
        checks.append(check)
        if not json_:
            mark, colour = _MARKS[check.state]
            typer.echo(typer.style(mark, fg=colour) + f" {check.name:<12} {check.found}")
            if check.advice:
                typer.echo(f"  {'':<12} → {check.advice}")
    state = worst(checks)
    if json_:
        as_json({"state": state, "checks": [asdict(check) for check in checks]})
    elif state != "ok":
        counts = {kind: sum(check.state == kind for check in checks) for kind in ("fail", "warn")}
        typer.echo(f"{counts['fail']} to mend, {counts['warn']} to look at")
    if state == "fail":
        raise typer.Exit(1)
