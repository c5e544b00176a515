"""`softmux migrate`: a tenant's tasks, taught to a new base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmux.cli.local import (
    AtOnce,
    Board,
    Cache,
    Checkpointing,
    Device,
    Fresh,
    SaveEvery,
    Tokens,
    needing_packages,
)
from softmux.cli.on_registry import ACTOR, DEFAULT_DATA, Data, Redis, on_registry
from softmux.cli.output import as_json, fail

if TYPE_CHECKING:
    from softmux.tuning.migration.migrated import Left

Blobs = Annotated[str | None, typer.Option(envvar="SOFTMUX_BLOBS", help="The blob store's URL, as the server has it.")]


def migrate(
    to: Annotated[str, typer.Option(help="The new base: a folder, or a hub id.")],
    from_: Annotated[
        str, typer.Option("--from", envvar="SOFTMUX_MODEL", help="The old base, as its server has --model.")
    ],
    tenant: Annotated[str, typer.Option(help="Whose tasks.")] = "default",
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    adapters: Annotated[Path | None, typer.Option(help="Folders to migrate, in place of a registry's tasks.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write folders there; publish nothing.")] = None,
    activate: Annotated[bool, typer.Option(help="Make the new versions the active ones for the new base.")] = True,
    again: Annotated[bool, typer.Option(help="Migrate those, too, that have a version for the new base.")] = False,
    inputs: Annotated[
        Path | None, typer.Option(help="A folder with TASK.jsonl, .csv or .parquet: kept inputs, maybe answers.")
    ] = None,
    recipes: Annotated[
        Path | None, typer.Option(help="A folder with TASK/recipe.toml: measured on their held-out rows.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Inputs of a task at most; so many are made up without any.")] = 1000,
    held_out: Annotated[int, typer.Option(min=1, help="Rows with answers to measure on, at most.")] = 500,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of an answer; by default the recipe's, or 64.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Updates of a task at most.")] = 300,
    learning_rate: Annotated[float | None, typer.Option(min=0, help="By default by the method.")] = None,
    seed: Annotated[int, typer.Option(help="Of made-up inputs and the order of rows.")] = 0,
    report: Annotated[Path | None, typer.Option(help="Where the report goes; by default --out, or migration/.")] = None,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    blobs: Blobs = None,
    device: Device = "auto",
    cache: Cache = None,
    at_once: AtOnce = 64,
    tokens: Tokens = None,
    save_every: SaveEvery = 50,
    fresh: Fresh = False,
    checkpointing: Checkpointing = False,
    tensorboard: Board = None,
    json_: Annotated[bool, typer.Option("--json", help="Write the report as JSON.")] = False,
) -> None:
    """Teach a tenant's tasks to a new base: new versions beside the old, which the old base goes on serving."""
    if adapters is not None and out is None:
        fail("folders become folders: give --out, and publish them to a server of the new base with softmux upload")
    for folder in (adapters, inputs, recipes):
        if folder is not None and not folder.is_dir():
            fail(f"there is no folder {folder}")
    with needing_packages():
        from rich.console import Console

        from softmux.tuning import Together
        from softmux.tuning.migration import shelf
        from softmux.tuning.migration.migrate import Bases
        from softmux.tuning.migration.migrate import migrate as run
        from softmux.tuning.migration.migrated import figures, table
        from softmux.tuning.migration.plan import How
    console = Console(stderr=True)
    only = task or []
    bases = Bases.of(from_, to, cache)
    fingerprints = (bases.old_spec.base_fingerprint, bases.new_spec.base_fingerprint)
    left: list[Left]
    if adapters is not None:
        tasks, left = shelf.from_folders(adapters, only), []
    else:
        tasks, left = on_registry(
            redis, data, lambda registry: shelf.from_registry(registry, tenant, fingerprints, only, again=again),
            blobs=blobs,
        )  # fmt: skip
    if not tasks:
        fail(f"all {len(left)} tasks have a version for the new base; --again migrates them again")
    if out is not None:
        shelf.check_writable(out, tasks)
    kept = cache / "tuning" if cache else None
    how = How(inputs, recipes, rows, held_out, max_tokens, steps, learning_rate or None, seed)
    together = Together(at_once, tokens, save_every, kept, fresh, checkpointing, tensorboard)
    found, finish = run(tasks, bases, how, device, cache=cache, console=console, together=together)
    found = replace(found, left=(*found.left, *left))
    if out is not None:
        shelf.into_folders(out, found)
    else:
        trained = found
        found = on_registry(
            redis, data, lambda registry: shelf.publish(registry, tenant, trained, activate=activate, actor=ACTOR),
            blobs=blobs,
        )  # fmt: skip
    _, written = shelf.write_report(report or out or Path(shelf.REPORT), found)
    finish()
    if json_:
        as_json(figures(found))
    else:
        console.print(table(found))
        for one in found.left:
            console.print(f"{one.task} is left: {one.why}", highlight=False, markup=False)
    console.print(f"the report is in {written}", highlight=False, markup=False)
    if not found.moved:
        raise typer.Exit(1)
