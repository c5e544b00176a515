"""What is read of the registry's tasks, straight from Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from softmux.errors import NotFound, VersionNotFound
from softmux.registry import scripts
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.files import file_bytes
from softmux.registry.keyspace import of_task, of_tenant
from softmux.registry.publication import no_task, no_version
from softmux.registry.records import TaskPage, TaskView, VersionRecord, decode_tasks

_SCAN = 200
"""Tasks read at once."""


class VersionReader:
    def __init__(self, connection: Connection, blobs: BlobStore) -> None:
        self._connection = connection
        self._blobs = blobs

    async def views(self, tenant: str, tasks: Sequence[str]) -> list[TaskView]:
        """Each task's view, read atomically; an empty one where there is no such task."""
        hashes = [of_task(tenant, kind, task) for task in tasks for kind in ("versions", "active")]
        keys = [of_tenant(tenant, "shares"), *hashes]
        return decode_tasks(tenant, tasks, await self._connection.script(scripts.VIEWS, keys, list(tasks)))

    async def task(self, tenant: str, task: str) -> TaskView:
        """Raises `TaskNotFound`."""
        [view] = await self.views(tenant, [task])
        if not view.versions:
            raise no_task(task)
        return view

    async def active(self, tenant: str, task: str, base: str) -> VersionRecord:
        """Raises `TaskNotFound`; `VersionNotFound` where no version is active for the base."""
        return active_of(await self.task(tenant, task), task, base)

    async def version(self, tenant: str, task: str, number: int) -> VersionRecord:
        """Raises `TaskNotFound`, `VersionNotFound`."""
        view = await self.task(tenant, task)
        if number not in view.versions:
            raise no_version(task, number)
        return view.versions[number]

    async def versions(self, tenant: str, task: str) -> list[VersionRecord]:
        """Newest first. Raises `TaskNotFound`."""
        view = await self.task(tenant, task)
        return [view.versions[number] for number in sorted(view.versions, reverse=True)]

    async def tasks(
        self, tenant: str, base: str, *, limit: int = 100, cursor: str | None = None, prefix: str = ""
    ) -> TaskPage:
        """The tasks with an active version for `base`, by name, after the name `cursor`."""
        found: list[VersionRecord] = []
        after = cursor
        while True:
            names = await self.names(tenant, after=after, prefix=prefix, limit=_SCAN)
            for view in await self.views(tenant, names) if names else []:
                if base in view.active:
                    if len(found) == limit:
                        return TaskPage(tuple(found), found[-1].task)
                    found.append(view.versions[view.active[base]])
            if len(names) < _SCAN:
                return TaskPage(tuple(found), None)
            after = names[-1]

    async def names(self, tenant: str, *, after: str | None, prefix: str, limit: int) -> list[str]:
        """Up to `limit` names of tasks with versions, in order, beyond `after`, that begin with `prefix`."""
        low = f"[{prefix}" if prefix else "-"
        if after is not None and after >= prefix:
            low = f"({after}"
        high = f"[{prefix}\x7f" if prefix else "+"  # names are ASCII below 0x7f
        found = await self._connection.call(
            lambda client: client.zrangebylex(of_tenant(tenant, "tasks"), low, high, start=0, num=limit)
        )
        return [name.decode() for name in found]

    async def file(self, tenant: str, task: str, number: int, name: str) -> bytes:
        """A version's file as it was sent. Raises `NotFound` for a name it lacks, `BlobDamaged`, `RegistryDown`."""
        record = await self.version(tenant, task, number)
        entries = {entry.name: entry for entry in record.manifest.files}
        if name not in entries:
            raise NotFound(f"version {number} of {task!r} has no file {name!r}; it has {', '.join(sorted(entries))}")
        entry = entries[name]
        inline = await self._connection.call(lambda client: client.hget(of_tenant(tenant, "files"), entry.sha256))
        return await asyncio.to_thread(file_bytes, tenant, entry, inline, self._blobs)


def active_of(view: TaskView, task: str, base: str) -> VersionRecord:
    """Raises `VersionNotFound` where no version is active for the base."""
    number = view.active.get(base)
    if number is None:
        raise VersionNotFound(
            f"task {task!r} has no active version for this base model: upload one made for it, or activate one",
            param="task",
        )
    return view.versions[number]
