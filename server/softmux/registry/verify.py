"""Whether a registry is whole: every version, pointer, sum and file. Safe beside servers and uploads."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec

from softmux.errors import BlobDamaged
from softmux.formats.digest import adapter_digest
from softmux.registry import snapshot
from softmux.registry.backup import good_copy
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.files import is_inline
from softmux.registry.keys import KeyRecord
from softmux.registry.keyspace import DELETED_TENANTS, ID, KEYS, TENANTS, of_tenant
from softmux.registry.snapshot import Snapshot, TenantData
from softmux.types import FileEntry

_LOOKS = 8
_PAUSES = (0.05, 0.4)


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """`wrong` has to be seen to; `healed` was wrong and is right again; `unused` blobs only take up room."""

    tasks: int
    versions: int
    files: int
    wrong: tuple[str, ...]
    healed: tuple[str, ...]
    unused: tuple[str, ...]


async def verify(connection: Connection, blobs: BlobStore, *, heal_from: Path | None = None) -> Findings:
    """Reads and checks everything. A damaged blob is put aside, and put back where there is a good copy: with
    another tenant, or in the backup `heal_from`. Raises `RegistryDown`.

    What others change between two reads may look wrong for a moment: what counts is found at every look.
    """
    found = await snapshot.read(connection)
    wrong = list(_wrong(found))
    for _ in range(_LOOKS - 1):
        if not wrong:
            break
        await asyncio.sleep(random.uniform(*_PAUSES))  # noqa: S311 - in step with nobody
        found = await snapshot.read(connection)
        again = set(_wrong(found))
        wrong = [finding for finding in wrong if finding in again]
    healed: list[str] = []
    files = 0
    for tenant, data in found.tenants.items():
        wanted = list(snapshot.entries(data).values())
        files += len(wanted)
        async for entry, content in snapshot.files(connection, blobs, tenant, wanted):
            if not isinstance(content, Exception):
                continue
            if not isinstance(content, BlobDamaged):
                raise content
            if await _gone(connection, tenant, entry):
                continue
            what = f"{tenant}: {content.message} (in {', '.join(_users(data, entry))})"
            if await _heal(connection, blobs, found, tenant, entry, heal_from):
                healed.append(what)
            else:
                wrong.append(what)
    return Findings(
        tasks=sum(len(data.tasks) for data in found.tenants.values()),
        versions=sum(1 for data in found.tenants.values() for _ in data.versions()),
        files=files,
        wrong=tuple(wrong),
        healed=tuple(healed),
        unused=tuple(await _unused(connection, blobs)),
    )


def _wrong(found: Snapshot) -> Iterator[str]:
    if ID not in found.top:
        yield "there is no registry here"
    tenants = {name.decode() for known in (TENANTS, DELETED_TENANTS) for name in found.top.get(known, ("hash", {}))[1]}
    for key_id, record in found.top.get(KEYS, ("hash", {}))[1].items():
        try:
            tenant = msgspec.json.decode(record, type=KeyRecord).tenant
        except msgspec.MsgspecError as error:
            yield f"key {key_id.decode()} can't be read: {error}"
        else:
            if tenant not in tenants:
                yield f"key {key_id.decode()} is of the tenant {tenant}, which is not there"
    for tenant, data in found.tenants.items():
        if tenant not in tenants:
            yield f"{tenant}: has data, and is no tenant"
        yield from (f"{tenant}: {finding}" for finding in (*data.drop_unreadable(), *_wrong_of(data)))


def _wrong_of(data: TenantData) -> Iterator[str]:
    counters = data.hash("counters")
    for task, number, stored in data.versions():
        manifest, keys = stored.manifest, data.tasks[task]
        if adapter_digest(manifest.files, manifest.base_fingerprint) != manifest.digest:
            yield f"{task}@{number} is not what its digest {manifest.digest} names"
        if keys["digests"].get(manifest.digest.encode()) != b"%d" % number:
            yield f"{task}@{number} is not found by its digest"
        if int(counters.get(task.encode(), 0)) < number:
            yield f"{task}@{number} is beyond the task's counter"
    for task, keys in data.tasks.items():
        for base, pointed in keys["active"].items():
            if pointed not in keys["versions"]:
                yield f"{task} has {pointed.decode()} active for {base.decode()}, which is no version of it"
    right = snapshot.settled(data)
    for task in set(data.tasks) ^ {name.decode() for name in data.members("tasks")}:
        yield f"the list of tasks {'lacks' if task in data.tasks else 'has, without a version,'} {task}"
    garbage = {digest.decode() for digest in data.members("garbage")}
    for digest in snapshot.manifests(data):
        if digest.encode() not in data.hash("manifests"):
            yield f"the manifest {digest} is missing"
        if digest in garbage:
            yield f"the manifest {digest} is in use, and counts as garbage"
    for name in set(data.hash("manifests")) - set(right.hash("manifests")):
        if name.decode() not in garbage:
            yield f"the manifest {name.decode()} is of no version, and does not count as garbage"
    refs, having = data.hash("refs"), right.hash("refs")
    for held in set(refs) | set(having):
        counted, count = int(refs.get(held, 0)), int(having.get(held, 0))
        if counted != count:
            yield f"the manifest {held.decode()} is counted for {counted} versions, and {count} have it"
    for sha, uses in right.hash("filerefs").items():
        if int(data.hash("filerefs").get(sha, 0)) < int(uses):
            yield f"file {sha.decode()} is counted as less used than it is: it might be collected"


def _users(data: TenantData, entry: FileEntry) -> list[str]:
    return sorted(
        f"{task}@{number}"
        for task, number, stored in data.versions()
        if any(file.sha256 == entry.sha256 for file in stored.manifest.files)
    )


async def _gone(connection: Connection, tenant: str, entry: FileEntry) -> bool:
    """Whether the file's last version was deleted, and it was collected, since the registry was read."""
    return not await connection.call(lambda client: client.hexists(of_tenant(tenant, "filerefs"), entry.sha256))


async def _heal(
    connection: Connection, blobs: BlobStore, found: Snapshot, tenant: str, entry: FileEntry, heal_from: Path | None
) -> bool:
    content = None
    for other, data in found.tenants.items():
        if other != tenant and entry.sha256 in snapshot.entries(data):
            async for _, copy in snapshot.files(connection, blobs, other, [entry]):
                content = None if isinstance(copy, Exception) else copy
        if content is not None:
            break
    if content is None and heal_from is not None:
        content = await asyncio.to_thread(good_copy, heal_from, tenant, entry)
    if content is None:
        return False
    if is_inline(entry):
        key = of_tenant(tenant, "files")
        await connection.call(lambda client: client.hset(key, entry.sha256, content))
    else:
        await asyncio.to_thread(blobs.put, tenant, entry.sha256, content)
    return True


async def _unused(connection: Connection, blobs: BlobStore) -> list[str]:
    """Blobs that Redis knows nothing of: an upload tells Redis before it writes."""
    unused = []
    for tenant, sha256 in await asyncio.to_thread(lambda: sorted(blobs.names())):
        places = [of_tenant(tenant, kind) for kind in ("filerefs", "deleting", "loose")]
        if await connection.script(_UNKNOWN, places, [sha256]):
            unused.append(f"{tenant}: {sha256}")
    return unused


_UNKNOWN = """
local filerefs, deleting, loose = unpack(KEYS)
local known = redis.call('HEXISTS', filerefs, ARGV[1]) + redis.call('HEXISTS', deleting, ARGV[1])
return known == 0 and not redis.call('ZSCORE', loose, ARGV[1]) and 1 or 0
"""
