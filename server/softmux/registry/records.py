"""The registry's values."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from softmux.types import Manifest


class VersionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a task. Only `active` can change: whether its base's pointer names it. `created_at`: Unix s."""

    tenant: str
    task: str
    version: int
    manifest: Manifest
    created_at: float
    active: bool
    warnings: tuple[str, ...] = ()


class Published(msgspec.Struct, frozen=True):
    """What a publication made or found. `created`: False where the task had this very content already."""

    version: VersionRecord
    created: bool


class TaskPage(msgspec.Struct, frozen=True):
    """Active versions of a listing, by task name. `next_cursor` is None on the last page."""

    data: tuple[VersionRecord, ...]
    next_cursor: str | None


class StoredVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version as Redis holds it. `publication` names the call that made it, `actor` who called."""

    manifest: Manifest
    created_at: float
    publication: str
    actor: str
    warnings: tuple[str, ...] = ()

    def record(self, tenant: str, task: str, version: int, *, active: bool) -> VersionRecord:
        return VersionRecord(
            tenant=tenant,
            task=task,
            version=version,
            manifest=self.manifest,
            created_at=self.created_at,
            active=active,
            warnings=self.warnings,
        )


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """Who beside its owner may use a task: the tenants named, or `everyone`. They generate and classify with it and
    read its description; its files too with `files`; they change nothing."""

    tenants: tuple[str, ...] = ()
    everyone: bool = False
    files: bool = False

    def reaches(self, tenant: str) -> bool:
        return self.everyone or tenant in self.tenants


class TaskView(msgspec.Struct, frozen=True):
    """A task whole: its versions by number, the active one's number by base fingerprint, and who else may use it."""

    versions: dict[int, VersionRecord]
    active: dict[str, int]
    share: Share | None = None


_stored = msgspec.json.Decoder(StoredVersion)
_share = msgspec.json.Decoder(Share)
_views = msgspec.msgpack.Decoder(list[tuple[list[str], list[str], str]])


def decode_stored(data: bytes) -> StoredVersion:
    return _stored.decode(data)


def decode_tasks(tenant: str, tasks: Sequence[str], data: bytes) -> list[TaskView]:
    """The views of what `scripts.VIEWS` answers for `tasks`."""
    return [_task(tenant, task, *kept) for task, kept in zip(tasks, _views.decode(data), strict=True)]


def _task(tenant: str, task: str, versions: list[str], active: list[str], share: str) -> TaskView:
    pointers = {base: int(number) for base, number in zip(active[::2], active[1::2], strict=True)}
    records = {}
    for field, text in zip(versions[::2], versions[1::2], strict=True):
        stored, number = _stored.decode(text), int(field)
        is_active = pointers.get(stored.manifest.base_fingerprint) == number
        records[number] = stored.record(tenant, task, number, active=is_active)
    return TaskView(records, pointers, _share.decode(share) if share else None)
