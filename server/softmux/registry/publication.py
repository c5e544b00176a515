"""What changes the registry's tasks: publish, activate, delete. One script each, safe to be sent twice."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
import uuid
from collections.abc import Mapping

import msgspec

from softmux.errors import InternalError, QuotaExceeded, RegistryDown, TaskNotFound, VersionNotFound
from softmux.registry import scripts
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.files import is_inline
from softmux.registry.keyspace import AUDIT, CHANGES, SEQ, TENANTS, check_name, of_task, of_tenant
from softmux.registry.records import Published, Share, StoredVersion, VersionRecord, decode_stored
from softmux.registry.tenants import no_tenant
from softmux.types import Manifest

BLOB_DELETION_SECONDS = 60.0
"""How long a collector may take over one blob; beyond it, it counts as dead and the deletion is done again."""

_FREED_SECONDS = 60.0
"""A client beyond a quota may ask again after that: what frees it is a deletion, at once."""


def no_task(task: str) -> TaskNotFound:
    return TaskNotFound(f"there is no task {task!r}: check its name, or upload an adapter to it", param="task")


def no_version(task: str, number: int) -> VersionNotFound:
    return VersionNotFound(f"task {task!r} has no version {number}: list its versions", param="version")


class Publisher:
    def __init__(self, connection: Connection, blobs: BlobStore) -> None:
        self._connection = connection
        self._blobs = blobs

    async def publish(
        self,
        tenant: str,
        task: str,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *,
        activate: bool = True,
        only_new: bool = False,
        warnings: tuple[str, ...] = (),
        actor: str,
    ) -> Published | None:
        """Stores an admitted version. On return it is durable, whole and (unless `activate` is False) active.

        Content the task has already makes no new version: that one comes back, as it was made, and is activated all
        the same. `only_new`: None, and nothing done, where the task ever had a version. Raises `RegistryDown`, after
        which it may or may not be published (sending it again finds out), `NotFound` for an unknown tenant, and
        `QuotaExceeded` where it would take more than the tenant may have: then nothing has changed.
        """
        check_name(task, "task")
        await asyncio.to_thread(_check_files, manifest, files)
        stored = StoredVersion(
            manifest=manifest,
            created_at=time.time(),
            publication=uuid.uuid4().hex,
            actor=actor,
            warnings=warnings,
        )
        large = {entry.sha256: files[entry.name] for entry in manifest.files if not is_inline(entry)}
        if large and not only_new:
            await self._check_quota(tenant, task, manifest)
        for _ in range(5):
            await self._store_blobs(tenant, large)
            reply = await self._run(tenant, task, stored, files, activate=activate, only_new=only_new)
            state = reply[0].decode()
            if (
                state != "lease_lost"
            ):  # its blobs were collected meanwhile: the upload took longer than the grace period
                break
        if state == "present":
            return None
        if state == "no_tenant":
            raise no_tenant(tenant)
        if state == "quota":
            raise _beyond(reply)
        if state != "ok":
            raise RegistryDown("the files could not be kept in the blob store long enough: send the upload again")
        number = int(reply[1])
        record = decode_stored(reply[3]).record(tenant, task, number, active=reply[4] == reply[1])
        return Published(record, bool(reply[2]))

    async def activate(self, tenant: str, task: str, number: int, *, actor: str) -> VersionRecord:
        """Points the version's base at it. Raises `TaskNotFound`, `VersionNotFound`, `RegistryDown`."""
        reply = await self._connection.script(
            scripts.ACTIVATE,
            [SEQ, CHANGES, AUDIT, of_task(tenant, "versions", task), of_task(tenant, "active", task)],
            [tenant, task, number, actor],
        )
        if reply[0] == b"no_task":
            raise no_task(task)
        if reply[0] == b"no_version":
            raise no_version(task, number)
        return decode_stored(reply[1]).record(tenant, task, number, active=True)

    async def delete(self, tenant: str, task: str, *, actor: str) -> None:
        """Removes the task. Its numbers stay used, its files a while for requests that run. Raises `TaskNotFound`."""
        keys = [
            SEQ,
            CHANGES,
            of_tenant(tenant, "tasks"),
            *(of_task(tenant, kind, task) for kind in ("versions", "active", "digests")),
            *(of_tenant(tenant, kind) for kind in ("refs", "garbage", "tombstones", "shares")),
            AUDIT,
            of_tenant(tenant, "sizes"),
        ]
        args = [tenant, task, uuid.uuid4().hex, actor]
        reply = await self._connection.script(scripts.DELETE, keys, args)
        if reply[0] == b"no_task":
            raise no_task(task)

    async def share(self, tenant: str, task: str, share: Share | None, *, actor: str) -> None:
        """Lets others use the task as `share` says, and nobody beyond that; None: nobody. Raises `TaskNotFound`."""
        reply = await self._connection.script(
            scripts.SHARE,
            [SEQ, CHANGES, AUDIT, of_task(tenant, "versions", task), of_tenant(tenant, "shares")],
            [tenant, task, b"" if share is None else msgspec.json.encode(share), actor],
        )
        if reply[0] == b"no_task":
            raise no_task(task)

    async def _check_quota(self, tenant: str, task: str, manifest: Manifest) -> None:
        """What the publication itself will decide: before large files are stored that nothing may ever name."""
        keys = [TENANTS, *(of_tenant(tenant, kind) for kind in ("tasks", "refs", "sizes", "manifests"))]
        reply = await self._connection.script(
            scripts.CHECK_QUOTA, keys, [tenant, task, manifest.digest, manifest.bytes]
        )
        if reply[0] == b"quota":
            raise _beyond(reply)

    async def _store_blobs(self, tenant: str, large: Mapping[str, bytes]) -> None:
        if not large:
            return
        keys = [of_tenant(tenant, kind) for kind in ("loose", "filerefs", "deleting")]
        deadline = time.monotonic() + BLOB_DELETION_SECONDS
        while True:
            lease = await self._connection.script(scripts.LEASE, keys, [BLOB_DELETION_SECONDS, *large])
            if lease[0] == b"ok":
                break
            if time.monotonic() > deadline:
                raise RegistryDown("a file of the same content is being deleted: send the upload again")
            await asyncio.sleep(random.uniform(0.02, 0.1))  # noqa: S311 - jitter, no secret
        for sha256, data in large.items():
            await asyncio.to_thread(self._blobs.put, tenant, sha256, data)

    async def _run(
        self,
        tenant: str,
        task: str,
        stored: StoredVersion,
        files: Mapping[str, bytes],
        *,
        activate: bool,
        only_new: bool,
    ) -> list[bytes]:
        manifest = stored.manifest
        keys = [
            SEQ,
            CHANGES,
            TENANTS,
            of_tenant(tenant, "tasks"),
            of_tenant(tenant, "counters"),
            *(of_task(tenant, kind, task) for kind in ("versions", "active", "digests")),
            *(of_tenant(tenant, kind) for kind in ("manifests", "refs", "garbage", "files", "filerefs", "loose")),
            AUDIT,
            of_tenant(tenant, "sizes"),
        ]
        args: list[str | bytes | int] = [
            tenant,
            task,
            manifest.base_fingerprint,
            manifest.digest,
            msgspec.json.encode(stored),
            msgspec.json.encode(manifest),
            stored.publication,
            int(activate),
            int(only_new),
            stored.actor,
            manifest.bytes,
        ]
        for entry in manifest.files:
            inline = is_inline(entry)
            args += [entry.sha256, int(inline), files[entry.name] if inline else b""]
        reply: list[bytes] = await self._connection.script(scripts.PUBLISH, keys, args)
        return reply


def _beyond(reply: list[bytes]) -> QuotaExceeded:
    name, limit, used, added = reply[1].decode(), *map(int, reply[2:5])
    if name == "adapters":
        said = f"your limit adapters of {limit} is reached: DELETE /v1/adapters/{{task}} of a task no longer needed"
    else:
        said = (
            f"these {added:,} bytes beside the {used:,} of your other versions are more than your limit stored_bytes "
            f"of {limit:,}: DELETE /v1/adapters/{{task}} of tasks no longer needed (with all their versions)"
        )
    return QuotaExceeded(f"{said}, or ask the administrator for more", param=name, retry_after=_FREED_SECONDS)


def _check_files(manifest: Manifest, files: Mapping[str, bytes]) -> None:
    """The caller's promise: the manifest names exactly these bytes."""
    if {entry.name for entry in manifest.files} != set(files):
        raise InternalError("the manifest and the files to publish name different files")
    for entry in manifest.files:
        data = files[entry.name]
        if len(data) != entry.size or "sha256:" + hashlib.sha256(data).hexdigest() != entry.sha256:
            raise InternalError(f"the manifest does not describe the bytes of {entry.name}")
