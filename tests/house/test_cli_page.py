"""docs/cli.md lists the commands there are, and `softmux serve` takes the settings there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from softmux.cli import app
from softmux.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"
_NEVER_AN_OPTION = {"admin_key"}  # it would show in every list of processes


def _commands(group: Any, path: str = "softmux") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _usage(path: str, command: Any) -> str:
    arguments = [(p.metavar or p.name).upper() for p in command.params if p.param_type_name == "argument"]
    return " ".join([path, *arguments])


def test_every_command_is_listed_with_its_arguments() -> None:
    listed = re.findall(r"^\| `(softmux .*?)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    found = [_usage(path, command) for path, command in _commands(typer.main.get_command(app))]
    assert sorted(listed) == sorted(found)


def test_every_setting_is_an_option_of_serve() -> None:
    serve = dict(_commands(typer.main.get_command(app)))["softmux serve"]
    options = {option for parameter in serve.params for option in parameter.opts}
    expected = {f"--{name.replace('_', '-')}" for name in Settings.model_fields if name not in _NEVER_AN_OPTION}
    assert options - {"--help"} == expected


def test_every_command_writes_json_where_it_is_told_to() -> None:
    """But for the server itself, and for `bench`, whose own parser takes it where it measures."""
    without = {
        path
        for path, command in _commands(typer.main.get_command(app))
        if "--json" not in {option for parameter in command.params for option in parameter.opts}
    }
    assert without == {"softmux serve", "softmux bench"}
