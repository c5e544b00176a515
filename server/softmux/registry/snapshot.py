"""The registry as plain values, read while it is written to: what a backup keeps, and what a check looks at.

A value is, by its type: string: bytes; hash: a dict; zset: [[member, score], …]; set, list: [member, …]; stream:
[[id, {field: value}], …], all of bytes.

Keys are read by their Redis type, so one that this module has never heard of is kept, too. A task's own keys are read
in one transaction; a tenant's sums over its tasks (`refs`, `filerefs`, …) are made anew from them by `settled`, since
they may have been read at another moment. What expires by itself is left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec
import redis.asyncio

from softmux.errors import BlobDamaged
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.files import file_bytes
from softmux.registry.keyspace import of_tenant
from softmux.registry.records import StoredVersion, decode_stored
from softmux.types import FileEntry, Manifest

PREFIX = "softmux:"
_OF_A_TASK = ("versions", "active", "digests")
_AT_ONCE = 100
_TYPES = ("string", "hash", "zset", "set", "list", "stream")


@dataclass(slots=True)
class TenantData:
    """A tenant's keys by kind: `own` those of the tenant, `tasks` those of each task."""

    own: dict[str, tuple[str, Any]] = field(default_factory=dict)
    tasks: dict[str, dict[str, dict[bytes, bytes]]] = field(default_factory=dict)

    def hash(self, kind: str) -> dict[bytes, bytes]:
        return cast(dict[bytes, bytes], self.own.get(kind, ("hash", {}))[1])

    def members(self, kind: str) -> set[bytes]:
        return {member for member, _ in self.own.get(kind, ("zset", []))[1]}

    def versions(self) -> Iterable[tuple[str, int, StoredVersion]]:
        """(task, number, version). Raises `BlobDamaged` for one that can't be read."""
        for task, keys in self.tasks.items():
            for number, data in keys["versions"].items():
                try:
                    yield task, int(number), decode_stored(data)
                except (msgspec.MsgspecError, ValueError) as error:
                    raise BlobDamaged(f"{task}@{number.decode()} can't be read in Redis ({error})") from error

    def drop_unreadable(self) -> list[str]:
        """Versions that can't be read: what is the matter with them. They are not in here any more."""
        said = []
        for task, keys in self.tasks.items():
            for number, data in list(keys["versions"].items()):
                try:
                    list(TenantData(tasks={task: {"versions": {number: data}}}).versions())
                except BlobDamaged as error:
                    said.append(error.message)
                    del keys["versions"][number]
        return said


@dataclass(slots=True)
class Snapshot:
    """`top`: keys of no tenant, by name. A tenant's small files are not in it: `files` reads them, with the others."""

    top: dict[str, tuple[str, Any]] = field(default_factory=dict)
    tenants: dict[str, TenantData] = field(default_factory=dict)

    def items(self) -> Iterable[tuple[str, str, Any]]:
        """(key, type, value) of everything."""
        yield from ((key, kind, value) for key, (kind, value) in self.top.items())
        for tenant, data in self.tenants.items():
            yield from ((of_tenant(tenant, name), kind, value) for name, (kind, value) in data.own.items())
            for task, kinds in data.tasks.items():
                for name, value in kinds.items():
                    yield f"{of_tenant(tenant, name)}:{task}", "hash", value


def manifests(data: TenantData) -> dict[str, Manifest]:
    """Those that a version has, by digest."""
    return {stored.manifest.digest: stored.manifest for _, _, stored in data.versions()}


def entries(data: TenantData) -> dict[str, FileEntry]:
    """The files of all versions, by hash."""
    return {entry.sha256: entry for manifest in manifests(data).values() for entry in manifest.files}


async def read(connection: Connection) -> Snapshot:
    """Everything under `softmux:`. Raises `RegistryDown`."""
    snapshot = Snapshot()
    top: list[str] = []
    own: list[tuple[str, str]] = []
    tasks: list[tuple[str, str]] = []
    async for key in _scan(connection):
        space, _, rest = key.removeprefix(PREFIX).partition(":")
        tenant, _, kind = rest.partition(":")
        if space != "t" or not kind:
            top.append(key)
            continue
        snapshot.tenants.setdefault(tenant, TenantData())
        name, _, task = kind.partition(":")
        if not task:
            own.append((tenant, kind))
        elif name == "versions":
            tasks.append((tenant, task))
        elif name not in _OF_A_TASK:
            own.append((tenant, kind))
    for part in _parts(tasks):
        names = [f"{of_tenant(tenant, kind)}:{task}" for tenant, task in part for kind in _OF_A_TASK]
        found = iter(await _pipelined(connection, [("HGETALL", name) for name in names]))
        for tenant, task in part:
            kinds = {kind: next(found) for kind in _OF_A_TASK}
            if kinds["versions"]:
                snapshot.tenants[tenant].tasks[task] = kinds
    values = await _values(connection, [of_tenant(*place) for place in own if place[1] != "files"])
    for tenant, kind in own:
        if (value := values.get(of_tenant(tenant, kind))) is not None:
            snapshot.tenants[tenant].own[kind] = value
    snapshot.top = await _values(connection, sorted(top))
    return snapshot


def settled(data: TenantData) -> TenantData:
    """The same with what is a sum over its tasks made anew, and without what was deleted or is being uploaded."""
    own = {kind: value for kind, value in data.own.items() if kind not in ("garbage", "loose", "deleting")}
    refs: dict[bytes, int] = {}
    counters = {name: int(count) for name, count in data.hash("counters").items()}
    for task, number, stored in data.versions():
        digest = stored.manifest.digest.encode()
        refs[digest] = refs.get(digest, 0) + 1
        counters[task.encode()] = max(counters.get(task.encode(), 0), number)
    held = manifests(data)
    filerefs: dict[bytes, int] = {}
    for manifest in held.values():
        for entry in manifest.files:
            filerefs[entry.sha256.encode()] = filerefs.get(entry.sha256.encode(), 0) + 1
    sums: dict[str, dict[bytes, bytes]] = {
        "counters": {name: b"%d" % count for name, count in counters.items()},
        "refs": {name: b"%d" % count for name, count in refs.items()},
        "filerefs": {name: b"%d" % count for name, count in filerefs.items()},
        "manifests": {digest.encode(): msgspec.json.encode(manifest) for digest, manifest in held.items()},
        "sizes": {digest: size for digest, size in data.hash("sizes").items() if digest in refs},
        "shares": {task: share for task, share in data.hash("shares").items() if task.decode() in data.tasks},
    }
    own |= {kind: ("hash", value) for kind, value in sums.items() if value or kind in own}
    own["tasks"] = ("zset", [[task.encode(), b"0"] for task in sorted(data.tasks)])
    return TenantData({kind: value for kind, value in own.items() if value[1]}, data.tasks)


async def files(
    connection: Connection, blobs: BlobStore, tenant: str, wanted: Sequence[FileEntry]
) -> AsyncIterator[tuple[FileEntry, bytes | Exception]]:
    """Each file's bytes, hash checked, or `BlobDamaged`, or `RegistryDown`."""
    for part in _parts(wanted):
        hashes = [entry.sha256 for entry in part]
        inline = await connection.call(
            lambda client, hashes=hashes: client.hmget(of_tenant(tenant, "files"), hashes)  # type: ignore[misc]
        )
        for entry, data in zip(part, inline, strict=True):
            try:
                yield entry, await asyncio.to_thread(file_bytes, tenant, entry, data, blobs)
            except Exception as error:
                yield entry, error


async def _scan(connection: Connection) -> AsyncIterator[str]:
    cursor, seen = 0, set[str]()
    while True:
        cursor, names = await connection.call(
            lambda client, cursor=cursor: client.scan(cursor, match=PREFIX + "*", count=1000)  # type: ignore[misc]
        )
        for name in names:
            if (key := name.decode()) not in seen:
                seen.add(key)
                yield key
        if cursor == 0:
            return


async def _values(connection: Connection, keys: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """The keys' types and values; without those that expire, or are gone."""
    found: dict[str, tuple[str, Any]] = {}
    for part in _parts(keys):
        told = await _pipelined(connection, [(ask, key) for key in part for ask in ("TYPE", "PTTL")])
        lasting = [
            (key, kind.decode()) for key, kind, left in zip(part, told[::2], told[1::2], strict=True) if left == -1
        ]
        for key, kind in lasting:
            found[key] = (kind, await _value(connection, key, kind))
    return found


async def _value(connection: Connection, key: str, kind: str) -> Any:
    if kind not in _TYPES:
        raise ValueError(f"{key} is of the type {kind}, which nothing here knows how to keep")

    async def ask(client: Any) -> Any:
        match kind:
            case "string":
                return await client.get(key)
            case "hash":
                return await client.hgetall(key)
            case "zset":
                return [[m, repr(s).encode()] for m, s in await client.zrange(key, 0, -1, withscores=True)]
            case "set":
                return sorted(await client.smembers(key))
            case "list":
                return await client.lrange(key, 0, -1)
        entries: list[Any] = []
        after = "-"
        while part := await client.xrange(key, after, "+", count=1000):
            entries += [[name, told] for name, told in part]
            after = "(" + part[-1][0].decode()
        return entries

    return await connection.call(ask)


async def _pipelined(connection: Connection, commands: Sequence[tuple[str, str]]) -> list[Any]:
    """The replies, in one transaction."""

    async def run(client: redis.asyncio.Redis) -> list[Any]:
        async with client.pipeline(transaction=True) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            replies: list[Any] = await pipe.execute()
        return replies

    found: list[Any] = await connection.call(run)
    return found


def _parts(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))
