"""The registry as a whole: checked, kept in a file, put back. Whether a server runs on it or not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from softmux.cli.on_registry import DEFAULT_DATA, Data, Json, Redis
from softmux.cli.output import as_json, done, fail

if TYPE_CHECKING:
    from softmux.registry.backup import Backup
    from softmux.registry.blobs import BlobStore
    from softmux.registry.connection import Connection

registry = typer.Typer(no_args_is_help=True, help="The registry as a whole.")

Blobs = Annotated[str | None, typer.Option(envvar="SOFTMUX_BLOBS", help="The blob store's URL, as the server has it.")]
T = TypeVar("T")


@contextlib.asynccontextmanager
async def _opened(
    redis: str | None, data: Path, blobs: str | None, *, begin: bool
) -> AsyncIterator[tuple[Connection, BlobStore]]:
    """A connection that takes its time, and begins no registry; without `begin`, no folder for one either."""
    from softmux.registry.backup import PATIENCE
    from softmux.registry.blobs import BlobStore, default_blob_url
    from softmux.registry.connection import Connection
    from softmux.registry.embedded import EmbeddedRedis

    with contextlib.ExitStack() as stack:
        if redis is None:
            redis = stack.enter_context(EmbeddedRedis(data, begin=begin)).url
        connection = Connection(redis, read_timeout=PATIENCE)
        try:
            yield connection, BlobStore(blobs or default_blob_url(data), make=begin)
        finally:
            await connection.close()


def _run(
    redis: str | None,
    data: Path,
    blobs: str | None,
    work: Callable[[Connection, BlobStore], Awaitable[T]],
    *,
    begin: bool = False,
) -> T:
    async def run() -> T:
        async with _opened(redis, data, blobs, begin=begin) as (connection, store):
            return await work(connection, store)

    return asyncio.run(run())


@registry.command("verify")
def verify(
    heal_from: Annotated[Path | None, typer.Option(help="A backup that damaged files are taken from.")] = None,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    blobs: Blobs = None,
    json_: Json = False,
) -> None:
    """Check every version, pointer, sum and file, beside whatever runs. Exit code 1 where something is wrong."""
    from softmux.registry.verify import verify as check

    if heal_from is not None:
        _check_backup(heal_from)
    found = _run(redis, data, blobs, lambda connection, store: check(connection, store, heal_from=heal_from))
    if json_:
        import msgspec

        as_json(msgspec.to_builtins(found))
    else:
        for title, findings in (("wrong", found.wrong), ("healed", found.healed), ("unused", found.unused)):
            for finding in findings:
                typer.echo(f"{title:<7} {finding}")
        typer.echo(f"{found.tasks} tasks, {found.versions} versions, {found.files} files checked")
    if found.wrong:
        raise typer.Exit(1)


@registry.command("backup")
def backup(
    target: Annotated[
        str,
        typer.Argument(
            help="A file; or a folder, in which the backup gets a name of its own: NAME/ is made where missing."
        ),
    ],
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    blobs: Blobs = None,
    json_: Json = False,
) -> None:
    """Write the whole registry to a file, beside whatever runs."""
    from softmux.registry.backup import backup as write

    path = _file_of(target)
    about = _run(redis, data, blobs, lambda connection, store: write(connection, store, path))
    _tell(f"{path}:", about, json_, file=str(path))


def _file_of(target: str) -> Path:
    """What a backup to `target` is written to. A slash at its end, which a `Path` would lose, makes it a folder."""
    path = Path(target)
    if target.endswith("/"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fail(f"no folder {path} can be made: {error.strerror}; name another, or a file without a slash at its end")
    try:
        if path.is_dir():
            return path / time.strftime("softmux-%Y%m%dT%H%M%SZ.tar", time.gmtime())
        found = path.absolute().parent.is_dir()
    except OSError as error:
        fail(f"{path} can't be looked at ({error.strerror}): name another place")
    if not found:
        fail(f"there is no folder {path.absolute().parent}: make it first, or end TARGET with a slash to have one made")
    return path


@registry.command("restore")
def restore(
    source: Annotated[Path, typer.Argument(help="A file that `softmux registry backup` wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of a registry in use.")] = False,
    redis: Redis = None,
    data: Data = DEFAULT_DATA,
    blobs: Blobs = None,
    json_: Json = False,
) -> None:
    """Put a backup back: into an empty Redis, or with --replace in the place of what is there."""
    from softmux.registry.backup import restore as put

    _check_backup(source)
    about = _run(
        redis, data, blobs, lambda connection, store: put(connection, store, source, replace=replace), begin=True
    )
    _tell("restored", about, json_, file=str(source))


def _check_backup(path: Path) -> None:
    """Before anything is opened or made for it."""
    if not path.is_file():
        fail(f"there is no file {path}: name a backup, as `softmux registry backup` wrote it")


def _tell(words: str, about: Backup, json_: bool, *, file: str) -> None:
    counts = {name: getattr(about, name) for name in ("tenants", "tasks", "versions", "files")}
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    done(f"{words} {shown}", json_, file=file, **counts)
