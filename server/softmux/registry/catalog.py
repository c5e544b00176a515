"""The tasks of the registry in a server's memory: what requests resolve against, without asking Redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from heapq import nsmallest

from softmux.errors import BaseMismatch
from softmux.registry.connection import Connection
from softmux.registry.follower import Change
from softmux.registry.keyspace import TENANTS
from softmux.registry.publication import no_task, no_version
from softmux.registry.records import TaskPage, TaskView, VersionRecord
from softmux.registry.versions import VersionReader, active_of

_PAGE = 200


class Catalog:
    """Belongs to one event loop. `resolve` never waits; the rest is how a `Follower` and the registry feed it."""

    def __init__(self, connection: Connection, reader: VersionReader) -> None:
        self._connection = connection
        self._reader = reader
        self._tasks: dict[str, dict[str, TaskView]] = {}
        self._shares: set[str] = set()
        """`owner/task` of every task that its owner shares."""
        self._writing = asyncio.Lock()  # so that a later read never loses to an earlier one

    def resolve(self, tenant: str, task: str, version: int | None, base_fingerprint: str) -> VersionRecord:
        """The version a request of `tenant` named, or the base's active one. `task` is a task of its own, or
        `owner/task`, one that is shared with it.

        Raises `TaskNotFound`, `VersionNotFound`, and `BaseMismatch` for a named version made for another base.
        """
        view = self._view(tenant, task)
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

    def shared(self, tenant: str, task: str) -> TaskView:
        """The task `owner/task`, which another tenant shares with `tenant`. Raises `TaskNotFound` where it doesn't:
        whether there is such a task is nobody else's to know."""
        view = self._view(tenant, task)
        if view.share is None or not view.share.reaches(tenant):
            raise no_task(task)
        return view

    def shared_tasks(
        self, tenant: str, base: str, *, limit: int = 100, cursor: str | None = None, prefix: str = ""
    ) -> TaskPage:
        """The active versions for `base` of all that others share with `tenant`, by `owner/task`, after `cursor`."""
        found: list[VersionRecord] = []
        for name in sorted(self._shares):
            owner, _, task = name.partition("/")
            view = self._tasks[owner][task]
            reaches = owner != tenant and view.share is not None and view.share.reaches(tenant)
            if not reaches or base not in view.active or not name.startswith(prefix) or name <= (cursor or ""):
                continue
            if len(found) == limit:
                last = found[-1]
                return TaskPage(tuple(found), f"{last.tenant}/{last.task}")
            found.append(view.versions[view.active[base]])
        return TaskPage(tuple(found), None)

    def usable(self, tenant: str, base: str, *, limit: int, cursor: str | None = None) -> TaskPage:
        """The active versions for `base` of all that `tenant` may use, its own and what others share with it, by the
        names that it calls them (`task`, `owner/task`), after `cursor`."""
        own = {name: view for name, view in self._tasks.get(tenant, {}).items() if base in view.active}
        for name in self._shares:
            owner, _, task = name.partition("/")
            view = self._tasks[owner][task]
            if owner != tenant and base in view.active and view.share is not None and view.share.reaches(tenant):
                own[name] = view
        names = nsmallest(limit + 1, [name for name in own if cursor is None or name > cursor])
        found = [own[name].versions[own[name].active[base]] for name in names[:limit]]
        return TaskPage(tuple(found), names[limit - 1] if len(names) > limit else None)

    def _view(self, tenant: str, name: str) -> TaskView:
        """Raises `TaskNotFound`, the same for what does not exist and for what is not shared with `tenant`."""
        owner, slash, task = name.partition("/")
        view = self._tasks.get(owner, {}).get(task) if slash else self._tasks.get(tenant, {}).get(name)
        if view is None or (slash and owner != tenant and not (view.share and view.share.reaches(tenant))):
            raise no_task(name)
        return view

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
        if not by_tenant:
            return

        async def read() -> list[list[TaskView]]:
            return [await self._reader.views(tenant, tasks) for tenant, tasks in by_tenant.items()]

        async with self._writing:
            found = await self._connection.mirrored(read)
            for (tenant, tasks), views in zip(by_tenant.items(), found, strict=True):
                known = self._tasks.setdefault(tenant, {})
                for task, view in zip(tasks, views, strict=True):
                    if view.versions:
                        known[task] = view
                    else:
                        known.pop(task, None)
                    (self._shares.add if view.versions and view.share else self._shares.discard)(f"{tenant}/{task}")

    async def reload(self) -> None:
        async with self._writing:
            self._tasks = await self._connection.mirrored(self._all)
            self._shares = {f"{t}/{task}" for t, tasks in self._tasks.items() for task in tasks if tasks[task].share}

    def confirm(self) -> None:
        """What it knows stays good however old it is."""

    async def _all(self) -> dict[str, dict[str, TaskView]]:
        tenants = await self._connection.call(lambda client: client.hkeys(TENANTS))
        return {tenant.decode(): await self._load(tenant.decode()) for tenant in tenants}

    async def _load(self, tenant: str) -> dict[str, TaskView]:
        loaded: dict[str, TaskView] = {}
        after: str | None = None
        while names := await self._reader.names(tenant, after=after, prefix="", limit=_PAGE):
            views = await self._reader.views(tenant, names)
            loaded.update((name, view) for name, view in zip(names, views, strict=True) if view.versions)
            after = names[-1]
        return loaded
