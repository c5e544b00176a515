"""The tasks of the registry in a server's memory: what requests resolve against, without asking Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from softmux.errors import BaseMismatch
from softmux.registry.connection import Connection
from softmux.registry.follower import Change
from softmux.registry.keyspace import TENANTS
from softmux.registry.publication import no_task, no_version
from softmux.registry.records import TaskView, VersionRecord
from softmux.registry.versions import VersionReader, active_of

_PAGE = 200


class Catalog:
    """Belongs to one event loop. `resolve` never waits; the rest is how a `Follower` and the registry feed it."""

    def __init__(self, connection: Connection, reader: VersionReader) -> None:
        self._connection = connection
        self._reader = reader
        self._tasks: dict[str, dict[str, TaskView]] = {}
        self._writing = asyncio.Lock()  # so that a later read never loses to an earlier one

    def resolve(self, tenant: str, task: str, version: int | None, base_fingerprint: str) -> VersionRecord:
        """The version a request named, or the base's active one.

        Raises `TaskNotFound`, `VersionNotFound`, and `BaseMismatch` for a named version made for another base.
        """
        view = self._tasks.get(tenant, {}).get(task)
        if view is None:
            raise no_task(task)
        if version is None:
            return active_of(view, task, base_fingerprint)
        record = view.versions.get(version)
        if record is None:
            raise no_version(task, version)
        if record.manifest.base_fingerprint != base_fingerprint:
            raise BaseMismatch(
                f"version {version} of task {task!r} was made for another base model "
                f"({record.manifest.base_fingerprint}): name a version made for this one, or leave the version out",
                param="task",
            )
        return record

    def __len__(self) -> int:
        """How many tasks of all tenants it knows."""
        return sum(len(tasks) for tasks in self._tasks.values())

    async def refresh(self, tenant: str, task: str) -> None:
        """Reads one task again. Raises `RegistryDown`."""
        await self.apply([Change("task", tenant, task)])

    async def apply(self, changes: Sequence[Change]) -> None:
        by_tenant: dict[str, list[str]] = {}
        for change in changes:
            if change.kind == "task":
                by_tenant.setdefault(change.tenant, []).append(change.task)
        async with self._writing:
            for tenant, tasks in by_tenant.items():
                views = await self._reader.views(tenant, tasks)
                known = self._tasks.setdefault(tenant, {})
                for task, view in zip(tasks, views, strict=True):
                    if view.versions:
                        known[task] = view
                    else:
                        known.pop(task, None)

    async def reload(self) -> None:
        async with self._writing:
            tenants = await self._connection.call(lambda client: client.hkeys(TENANTS))
            self._tasks = {tenant.decode(): await self._load(tenant.decode()) for tenant in tenants}

    def confirm(self) -> None:
        """What it knows stays good however old it is."""

    async def _load(self, tenant: str) -> dict[str, TaskView]:
        loaded: dict[str, TaskView] = {}
        after: str | None = None
        while names := await self._reader.names(tenant, after=after, prefix="", limit=_PAGE):
            views = await self._reader.views(tenant, names)
            loaded.update((name, view) for name, view in zip(names, views, strict=True) if view.versions)
            after = names[-1]
        return loaded
