"""Commands that need no server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from softmux.cli.output import as_json, facts, fail


def inspect(
    folder: Annotated[Path, typer.Argument(help="A folder as PEFT's save_pretrained writes it.")],
    json_: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Say what an adapter's folder holds: method, virtual tokens, parameters, bytes. Nothing of it is run."""
    from softmux.formats.config import CONFIG_FILE
    from softmux.formats.folder import load_folder
    from softmux.formats.json_file import read_object
    from softmux.formats.softmux_json import SOFTMUX_FILE
    from softmux.formats.tensors import WEIGHTS_FILE, read_safetensors

    files = load_folder(folder)
    config = read_object(files[CONFIG_FILE], CONFIG_FILE)
    tensors = read_safetensors(files[WEIGHTS_FILE])
    found = {
        "folder": str(folder),
        "method": str(config.get("peft_type", "not said")).lower(),
        "virtual_tokens": config.get("num_virtual_tokens"),
        "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
        "bytes": sum(len(data) for data in files.values()),
        "base": config.get("base_model_name_or_path"),
        "task_type": config.get("task_type"),
        "softmux_json": read_object(files[SOFTMUX_FILE], SOFTMUX_FILE) if SOFTMUX_FILE in files else None,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "files": {name: len(data) for name, data in files.items()},
    }
    if json_:
        as_json(found)
    else:
        facts((name, json.dumps(value) if isinstance(value, dict) else value) for name, value in found.items())


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
