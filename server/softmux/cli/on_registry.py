"""What commands have in common that work on the registry itself, whether a server runs on it or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from softmux.registry.registry import Registry

Redis = Annotated[str | None, typer.Option(envvar="SOFTMUX_REDIS", help="redis://… of a real server.")]
Data = Annotated[Path, typer.Option(envvar="SOFTMUX_DATA", help="The folder of the embedded one.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]
DEFAULT_DATA = Path("softmux-data")
ACTOR = "cli"
"""Who the audit log says it was."""
T = TypeVar("T")


def on_registry(
    redis: str | None,
    data: Path,
    work: Callable[[Registry], Awaitable[T]],
    *,
    blobs: str | None = None,
    begin: bool = False,
) -> T:
    """What `work` gives. Where there is no registry, only a command that makes something may `begin` one: servers take
    one that was begun on a wiped Redis for the truth, and refuse every key that they still knew."""
    from softmux.registry.registry import Registry

    async def run() -> T:
        registry = await Registry.open(redis, data, blobs, begin=begin)
        try:
            return await work(registry)
        finally:
            await registry.close()

    return asyncio.run(run())


def time_of(seconds: float) -> str:
    """A Unix time as a person reads it."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
