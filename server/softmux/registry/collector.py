"""Frees what no version has any more: manifests and files, first from Redis, then from the blob store.

The rule that keeps it from racing an upload: nothing goes before a grace period has passed since it was last
referenced or touched, an upload touches its blobs before it looks whether they are there, and a publication is refused
(and done again) where a blob of its own is no longer touched or referenced.
"""

from __future__ import annotations

import asyncio

from softmux.registry import scripts
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.keyspace import DELETED_TENANTS, TENANTS, of_tenant
from softmux.registry.publication import BLOB_DELETION_SECONDS

GRACE_SECONDS = 3600.0
UNFINISHED_SECONDS = 24 * 3600.0
"""How old what a killed writer left must be: no put takes a day, whatever the clock does."""


class Collector:
    def __init__(self, connection: Connection, blobs: BlobStore) -> None:
        self._connection = connection
        self._blobs = blobs

    async def collect(self, grace: float = GRACE_SECONDS) -> int:
        """One round over all tenants; how many blobs it deleted. `grace` in seconds. Raises `RegistryDown`."""
        await asyncio.to_thread(self._blobs.sweep, UNFINISHED_SECONDS)
        tenants: list[bytes] = []
        for known in (TENANTS, DELETED_TENANTS):
            tenants += await self._connection.call(lambda client, known=known: client.hkeys(known))  # type: ignore[misc]
        return sum([await self._collect(tenant.decode(), grace) for tenant in tenants])

    async def _collect(self, tenant: str, grace: float) -> int:
        kinds = ("garbage", "manifests", "files", "filerefs", "loose", "deleting")
        keys = [of_tenant(tenant, kind) for kind in kinds]
        doomed: list[bytes] = await self._connection.script(scripts.COLLECT, keys, [grace, BLOB_DELETION_SECONDS])
        for sha256 in doomed:
            await asyncio.to_thread(self._blobs.delete, tenant, sha256.decode())
            await self._connection.call(
                lambda client, sha256=sha256: client.hdel(of_tenant(tenant, "deleting"), sha256)  # type: ignore[misc]
            )
        return len(doomed)
