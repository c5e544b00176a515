"""The registry, whole: what the API and the command line open, ask and close."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import msgspec

from softmux.errors import Conflict, RegistryDown, TaskNotFound
from softmux.registry.audit import AuditLog
from softmux.registry.blobs import BlobStore, default_blob_url
from softmux.registry.catalog import Catalog
from softmux.registry.collector import GRACE_SECONDS, Collector
from softmux.registry.connection import Connection, RegistryWiped
from softmux.registry.embedded import EmbeddedRedis
from softmux.registry.follower import Follower
from softmux.registry.keys import KeyRing
from softmux.registry.keyspace import ID, TENANTS
from softmux.registry.publication import Publisher
from softmux.registry.records import Published, Share, TaskPage, VersionRecord
from softmux.registry.tenants import TenantRecord, Tenants
from softmux.registry.usage import UsageStore
from softmux.registry.versions import VersionReader
from softmux.types import DEFAULT_TENANT, Manifest

log = logging.getLogger(__name__)

_COLLECT_SECONDS = 300.0
_DELETIONS = 10
"""How often a tenant that is being deleted may be found to have something new."""


class Registry:
    """Belongs to one event loop. `catalog`, `tenants` and `keys` answer from memory once `follow` was called.

    `url` and `blob_url` are what another process (the worker's `BlobReader`) opens the same registry by, for as long
    as this one is open.
    """

    def __init__(self, connection: Connection, blobs: BlobStore, embedded: EmbeddedRedis | None) -> None:
        self.url = connection.url
        self.blob_url = blobs.url
        self._connection = connection
        self._embedded = embedded
        self._publisher = Publisher(connection, blobs)
        self._versions = VersionReader(connection, blobs)
        self._collector = Collector(connection, blobs)
        self.tenants = Tenants(connection)
        self.usage = UsageStore(connection)
        self.keys = KeyRing(connection)
        self.audit = AuditLog(connection)
        self.catalog = Catalog(connection, self._versions)
        self.away: RegistryDown | None = None
        """Why the registry is out of reach, as the follower last found; None while it answers."""
        self._follower: Follower | None = None
        self._collecting: asyncio.Task[None] | None = None

    @classmethod
    async def open(
        cls, redis_url: str | None, data: Path, blob_url: str | None = None, *, begin: bool = True
    ) -> Registry:
        """Connects to `redis_url`, or joins or starts the embedded server under `data`. Raises `RegistryDown`.

        Where there is no registry yet, one is begun; with `begin` False it is missed (`RegistryDown`), and nothing is
        left there: no key, no folder.
        """
        embedded = None
        if redis_url is None:
            embedded = EmbeddedRedis(data, begin=begin)
            await asyncio.to_thread(embedded.start)
            redis_url = embedded.url
        registry: Registry | None = None
        try:
            blobs = BlobStore(blob_url or default_blob_url(data), make=begin)
            registry = cls(Connection(redis_url), blobs, embedded)
            await registry._prepare(begin)
        except BaseException:
            if registry is not None:
                await registry.close()
            elif embedded is not None:
                await asyncio.to_thread(embedded.close)
            raise
        return registry

    async def follow(self, *, collect: bool = True) -> None:
        """Loads `catalog`, `tenants` and `keys` and keeps them current from now on. Raises `RegistryDown`.

        `collect`: this is the process of its server that collects what is no longer used.
        """
        follower = Follower(self.url, (self.catalog, self.tenants, self.keys), told=self._told)
        try:
            await follower.start()
        except BaseException:
            await follower.stop()
            raise
        self._follower = follower
        if collect:
            self._collecting = asyncio.create_task(self._collect_now_and_then(), name="registry-collector")

    async def close(self) -> None:
        if self._collecting is not None:
            self._collecting.cancel()
            await asyncio.gather(self._collecting, return_exceptions=True)
        if self._follower is not None:
            await self._follower.stop()
        await self._connection.close()
        if self._embedded is not None:
            await asyncio.to_thread(self._embedded.close)

    async def publish(
        self,
        tenant: str,
        task: str,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *,
        activate: bool = True,
        warnings: tuple[str, ...] = (),
        actor: str,
    ) -> Published:
        """See `Publisher.publish`. On return, `catalog` of this process has it."""
        published = await self._publisher.publish(
            tenant, task, manifest, files, activate=activate, warnings=warnings, actor=actor
        )
        assert published is not None  # only `only_new` declines
        await self._refresh(tenant, task)
        return published

    async def publish_if_absent(
        self,
        tenant: str,
        task: str,
        manifest: Manifest,
        files: Mapping[str, bytes],
        *,
        warnings: tuple[str, ...] = (),
        actor: str,
    ) -> Published | None:
        """Publishes and activates only where the task never had a version, not even one deleted; else None."""
        published = await self._publisher.publish(
            tenant, task, manifest, files, only_new=True, warnings=warnings, actor=actor
        )
        if published is not None:
            await self._refresh(tenant, task)
        return published

    async def activate(self, tenant: str, task: str, number: int, *, actor: str) -> VersionRecord:
        """See `Publisher.activate`."""
        record = await self._publisher.activate(tenant, task, number, actor=actor)
        await self._refresh(tenant, task)
        return record

    async def delete(self, tenant: str, task: str, *, actor: str) -> None:
        """See `Publisher.delete`."""
        await self._publisher.delete(tenant, task, actor=actor)
        await self._refresh(tenant, task)

    async def share(self, tenant: str, task: str, share: Share | None, *, actor: str) -> None:
        """See `Publisher.share`."""
        await self._publisher.share(tenant, task, share, actor=actor)
        await self._refresh(tenant, task)

    async def shared_with(self, tenant: str, task: str) -> Share | None:
        """Who else may use the task. Raises `TaskNotFound`."""
        return (await self._versions.task(tenant, task)).share

    async def delete_tenant(self, name: str, *, force: bool = False, actor: str) -> None:
        """Deletes a tenant. `force`: after revoking its keys and deleting its tasks, each of which the audit log tells.

        Raises `Conflict` where it has some (with `force`: where others are made faster than they go), and as
        `Tenants.delete`.
        """
        left = await self.tenants.delete(name, actor=actor)
        for _ in range(_DELETIONS if force else 0):
            if left is None:
                break
            await self._empty(name, actor)
            left = await self.tenants.delete(name, actor=actor)
        if left is not None:
            raise Conflict(
                f"tenant {name!r} has {left.tasks} tasks and {left.keys} keys: delete and revoke them, or force it",
                param="tenant",
            )

    async def _empty(self, tenant: str, actor: str) -> None:
        for key in await self.keys.list_keys(tenant):
            await self.keys.revoke_key(key.id, actor=actor)
        after: str | None = None
        while tasks := await self._versions.names(tenant, after=after, prefix="", limit=100):
            for task in tasks:
                with contextlib.suppress(TaskNotFound):  # somebody else deleted it
                    await self.delete(tenant, task, actor=actor)
            after = tasks[-1]

    async def active(self, tenant: str, task: str, base: str) -> VersionRecord:
        return await self._versions.active(tenant, task, base)

    async def version(self, tenant: str, task: str, number: int) -> VersionRecord:
        return await self._versions.version(tenant, task, number)

    async def versions(self, tenant: str, task: str) -> list[VersionRecord]:
        return await self._versions.versions(tenant, task)

    async def tasks(
        self, tenant: str, base: str, *, limit: int = 100, cursor: str | None = None, prefix: str = ""
    ) -> TaskPage:
        return await self._versions.tasks(tenant, base, limit=limit, cursor=cursor, prefix=prefix)

    async def file(self, tenant: str, task: str, number: int, name: str) -> bytes:
        return await self._versions.file(tenant, task, number, name)

    async def collect(self, grace: float = GRACE_SECONDS) -> int:
        """See `Collector.collect`; a registry that follows does this by itself."""
        return await self._collector.collect(grace)

    def _told(self, away: RegistryDown | None) -> None:
        """By the follower. What is merely away may be back at any call; a wiped one must not be written to."""
        self.away = away
        self._connection.wiped = isinstance(away, RegistryWiped)

    async def _prepare(self, begin: bool) -> None:
        if not begin:
            await self._connection.check_there()
            return
        await self._connection.call(lambda client: client.setnx(ID, uuid.uuid4().hex))
        default = msgspec.json.encode(TenantRecord(name=DEFAULT_TENANT, created_at=time.time()))
        await self._connection.call(lambda client: client.hsetnx(TENANTS, DEFAULT_TENANT, default))

    async def _refresh(self, tenant: str, task: str) -> None:
        if self._follower is None:
            return
        try:
            await self.catalog.refresh(tenant, task)
        except RegistryDown as error:  # what was done is done; the follower sees it when Redis is back
            log.warning("the change to %s/%s will show with the registry's return: %s", tenant, task, error.message)

    async def _collect_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(_COLLECT_SECONDS)
            try:
                await self._collector.collect()
            except RegistryDown as error:
                log.warning("collecting unused files failed, it will be tried again: %s", error.message)
