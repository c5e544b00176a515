"""A registry in one file, and back: a tar of its values and its files, the same whatever Redis and store they lay in.

values.msgpack      [key, type, value] of every key (`snapshot`), in one array
files/<tenant>/<sha256>
backup.json         Backup: written last, so that a file cut short is none
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tarfile
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import redis.asyncio

from softmux import __version__
from softmux.errors import InvalidRequest
from softmux.formats.digest import sha256
from softmux.registry import snapshot
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.files import is_inline
from softmux.registry.keyspace import CHANGES, ID, SEQ, TENANTS, of_tenant
from softmux.registry.snapshot import Snapshot, TenantData
from softmux.types import FileEntry

FORMAT = 1
PATIENCE = 60.0
"""Seconds a read or a write of a backup may take: nobody waits for it, and much is read at once."""
_VALUES, _ABOUT = "values.msgpack", "backup.json"
_STAGED = "softmux-restoring:"
_AT_ONCE = 100


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself. `taken_at`: Unix s. `values`: SHA-256 of `values.msgpack`."""

    format: int
    softmux: str
    taken_at: float
    registry: str
    tenants: int
    tasks: int
    versions: int
    files: int
    values: str


class NotEmpty(InvalidRequest):
    """There is a registry already where one is to be restored."""


async def backup(connection: Connection, blobs: BlobStore, path: Path) -> Backup:
    """Writes the registry to `path`, which is whole or not there. Publishing may go on meanwhile.

    Raises `RegistryDown`, `InvalidRequest` where `path` can't be written, and `BlobDamaged` where a version's file is
    lost: nothing incomplete is called a backup.
    """
    found = await snapshot.read(connection)
    if ID not in found.top:
        raise InvalidRequest("there is no registry to back up: check --redis or --data")
    found.top.pop(CHANGES, None)  # followers of what is restored read everything anew
    found.tenants = {tenant: snapshot.settled(data) for tenant, data in found.tenants.items()}
    values = msgspec.msgpack.encode(list(found.items()))
    count = 0
    partial: Path | None = None
    try:
        written, partial = _private(path)
        with written, tarfile.open(fileobj=written, mode="w") as tar:
            _add(tar, _VALUES, values)
            for tenant, data in found.tenants.items():
                async for entry, content in snapshot.files(
                    connection, blobs, tenant, list(snapshot.entries(data).values())
                ):
                    if isinstance(content, Exception):
                        raise content
                    await asyncio.to_thread(_add, tar, _place(tenant, entry.sha256), content)
                    count += 1
            about = Backup(
                format=FORMAT,
                softmux=__version__,
                taken_at=time.time(),
                registry=found.top[ID][1].decode(),
                tenants=len(found.top[TENANTS][1]),
                tasks=sum(len(data.tasks) for data in found.tenants.values()),
                versions=sum(1 for data in found.tenants.values() for _ in data.versions()),
                files=count,
                values=hashlib.sha256(values).hexdigest(),
            )
            _add(tar, _ABOUT, msgspec.json.encode(about))
        await asyncio.to_thread(_finish, partial, path)
    except OSError as error:
        raise InvalidRequest(
            f"the backup {path} can't be written ({error.strerror or error}): free space there, or name another place"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return about


async def restore(connection: Connection, blobs: BlobStore, path: Path, *, replace: bool = False) -> Backup:
    """Puts a backup back, all of it checked before the first byte is written; then it appears at once.

    It becomes a registry of a new id, so that servers that follow read everything anew. Raises `InvalidRequest` for a
    file that is no whole backup, `NotEmpty` where there is a registry (begun, and used) unless `replace`.
    """
    about, found = await asyncio.to_thread(_checked, path)
    await _refuse_used(connection, replace)
    await connection.call(_clear)
    found.top[ID] = ("string", uuid.uuid4().hex.encode())
    keys = [key for key in found.items() if key[2]]
    for start in range(0, len(keys), _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        await connection.call(lambda client, part=part: _stage(client, part))  # type: ignore[misc]
    with _Archive(path) as archive:
        for tenant, data in found.tenants.items():
            await _put_files(connection, blobs, archive, tenant, list(snapshot.entries(data).values()))
    if await connection.script(_APPEAR, [], [int(replace)], begins=True) != b"ok":
        await connection.call(_clear)
        raise _not_empty()
    return about


async def _put_files(
    connection: Connection, blobs: BlobStore, archive: _Archive, tenant: str, wanted: list[FileEntry]
) -> None:
    staged = _STAGED + of_tenant(tenant, "files")
    for start in range(0, len(wanted), _AT_ONCE):
        small: dict[str, bytes] = {}
        for entry in wanted[start : start + _AT_ONCE]:
            content = await asyncio.to_thread(archive.read, _place(tenant, entry.sha256))
            if is_inline(entry):
                small[entry.sha256] = content
            else:
                await asyncio.to_thread(blobs.put, tenant, entry.sha256, content)
        if small:
            await connection.call(lambda client, small=small: client.hset(staged, mapping=small))  # type: ignore[misc]


def _checked(path: Path) -> tuple[Backup, Snapshot]:
    """What a backup has, once every byte of it was found to be right. Raises `InvalidRequest`."""
    try:
        with _Archive(path) as archive:
            about = msgspec.json.decode(archive.read(_ABOUT), type=Backup)
            if about.format != FORMAT:
                raise InvalidRequest(f"{path} is a backup of format {about.format}: this softmux reads {FORMAT}")
            values = archive.read(_VALUES)
            if hashlib.sha256(values).hexdigest() != about.values:
                raise InvalidRequest(f"{path} is damaged: {_VALUES} is not what was written")
            found = _snapshot(values)
            for tenant, data in found.tenants.items():
                for entry in snapshot.entries(data).values():
                    if sha256(archive.read(_place(tenant, entry.sha256))) != entry.sha256:
                        raise InvalidRequest(f"{path} is damaged: {_place(tenant, entry.sha256)} does not fit its hash")
    except (OSError, tarfile.TarError, KeyError, msgspec.MsgspecError) as error:
        raise InvalidRequest(f"{path} is no whole backup of a registry: {error}") from error
    return about, found


def good_copy(path: Path, tenant: str, entry: FileEntry) -> bytes | None:
    """A file's bytes out of a backup; None where it has no good copy."""
    try:
        with _Archive(path) as archive:
            content = archive.read(_place(tenant, entry.sha256))
    except (OSError, tarfile.TarError, KeyError):
        return None
    return content if sha256(content) == entry.sha256 else None


def _snapshot(values: bytes) -> Snapshot:
    found = Snapshot()
    for key, kind, value in msgspec.msgpack.decode(values, type=list[tuple[str, str, Any]]):
        space, _, rest = key.removeprefix(snapshot.PREFIX).partition(":")
        tenant, _, name = rest.partition(":")
        what, _, task = name.partition(":")
        if space != "t":
            found.top[key] = (kind, value)
            continue
        data = found.tenants.setdefault(tenant, TenantData())
        if task and what in ("versions", "active", "digests"):
            data.tasks.setdefault(task, {})[what] = value
        else:
            data.own[name] = (kind, value)
    return found


_APPEAR = """
-- The staged keys take the place of what was there, in one step. ARGV: whether a used registry may go.
if ARGV[1] == '0' and (redis.call('EXISTS', 'softmux:seq') == 1 or redis.call('HLEN', 'softmux:tenants') > 1) then
  return 'used'
end
for _, key in ipairs(redis.call('KEYS', 'softmux:*')) do redis.call('UNLINK', key) end
for _, key in ipairs(redis.call('KEYS', 'softmux-restoring:*')) do
  redis.call('RENAME', key, string.sub(key, string.len('softmux-restoring:') + 1))
end
return 'ok'
"""


async def _refuse_used(connection: Connection, replace: bool) -> None:
    async def used(client: Any) -> bool:
        return bool(await client.exists(SEQ) or await client.hlen(TENANTS) > 1)

    if not replace and await connection.call(used):
        raise _not_empty()


def _not_empty() -> NotEmpty:
    return NotEmpty("there is a registry already, and it is in use: give --replace to have the backup in its place")


async def _clear(client: redis.asyncio.Redis) -> None:
    """Of a restore that did not come to its end."""
    async for key in client.scan_iter(match=_STAGED + "*", count=1000):
        await client.unlink(key)


async def _stage(client: redis.asyncio.Redis, part: list[tuple[str, str, Any]]) -> None:
    async with client.pipeline(transaction=True) as pipe:
        for key, kind, value in part:
            name = _STAGED + key
            pipe.delete(name)
            match kind:
                case "string":
                    pipe.set(name, value)
                case "hash":
                    pipe.hset(name, mapping=value)
                case "zset":
                    pipe.execute_command("ZADD", name, *(item for member, score in value for item in (score, member)))
                case "set":
                    pipe.sadd(name, *value)
                case "list":
                    pipe.rpush(name, *value)
                case "stream":
                    for number, told in value:
                        pipe.xadd(name, told, id=number)
        await pipe.execute()


def _private(path: Path) -> tuple[BinaryIO, Path]:
    """A file beside `path` for its owner alone, since a backup has the hashes of all keys; and for one backup alone,
    whoever else writes one there."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", suffix=".part", dir=path.parent)
    return os.fdopen(descriptor, "wb"), Path(name)


def _finish(partial: Path, path: Path) -> None:
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def _place(tenant: str, sha256: str) -> str:
    return f"files/{tenant}/{sha256.removeprefix('sha256:')}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(data), 0o600, int(time.time())
    tar.addfile(member, io.BytesIO(data))


class _Archive:
    """A backup's tar, read by names."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path)  # noqa: SIM115 - closed on exit
        self._members = {member.name: member for member in self._tar.getmembers()}

    def read(self, name: str) -> bytes:
        """Raises `KeyError` where it is not there, `tarfile.ReadError` where it is cut short."""
        member = self._members[name]
        file = self._tar.extractfile(member)
        if file is None or len(data := file.read()) != member.size:
            raise tarfile.ReadError(f"{name} is cut short")
        return data

    def __enter__(self) -> _Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._tar.close()
