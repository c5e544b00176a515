"""Where `softmux tune` and `softmux sweep` look tasks up that a recipe begins from: a server, or a registry at hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from softmux.cli.on_registry import DEFAULT_DATA
from softmux.cli.output import fail

if TYPE_CHECKING:
    from softmux.tuning.starts.library import Library

_SERVER = "The server; it has the tasks that a recipe begins from (init_from)."
Url = Annotated[str, typer.Option(envvar="SOFTMUX_URL", help=_SERVER)]
Key = Annotated[str | None, typer.Option(envvar="SOFTMUX_KEY", help="Your key there.", show_default=False)]
Redis = Annotated[
    str | None, typer.Option(help="What a recipe begins from without a server: the registry at redis://…")
]
Data = Annotated[Path | None, typer.Option(help="Or the registry in a server's --data folder.")]
Tenant = Annotated[
    str | None, typer.Option(help="Whose tasks these are, of a registry; by default the first tenant's.")
]


@contextmanager
def library(url: str, key: str | None, redis: str | None, data: Path | None, tenant: str | None) -> Iterator[Library]:
    """The registry where one is named, else the server. Neither is asked before a recipe needs it."""
    from softmux.tuning.starts.library import RegistryLibrary, ServerLibrary
    from softmux.types import DEFAULT_TENANT

    if redis is not None or data is not None:
        if data is not None and not data.is_dir():
            fail(f"there is no folder {data}: give a server's --data", "--data")
        with RegistryLibrary(redis, data or DEFAULT_DATA, tenant or DEFAULT_TENANT) as opened:
            yield opened
        return
    if tenant is not None:
        fail("a server knows its tenants by their keys: give --key, or --data or --redis", "--tenant")
    from softmux.client import Client, Retry

    with Client(url, key=key, retry=Retry(attempts=4, unreachable=False)) as client:
        yield ServerLibrary(client)
