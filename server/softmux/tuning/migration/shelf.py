"""Where tasks are taken from, and where what they have become is put: a registry, or folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from softmux.errors import InvalidRequest, QuotaExceeded, TaskNotFound, VersionNotFound
from softmux.formats.config import CONFIG_FILE
from softmux.formats.folder import load_folder
from softmux.registry.records import VersionRecord
from softmux.registry.registry import Registry
from softmux.tuning.migration.migrated import Left, Migration, figures, page
from softmux.tuning.migration.plan import OldTask
from softmux.tuning.whole_folder import whole_folder

REPORT = "migration"
"""The report's files, `.json` and `.md`."""


def from_folders(folder: Path, only: Sequence[str] = ()) -> list[OldTask]:
    """The adapters in `folder`, each under its folder's name. Raises `InvalidRequest` where there is none."""
    paths = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    tasks = [OldTask(path.name, load_folder(path)) for path in paths if not only or path.name in only]
    _check_all_there(only, [task.name for task in tasks], str(folder))
    if not tasks:
        raise InvalidRequest(f"{folder} has no folder of an adapter.", param="--adapters")
    return tasks


async def from_registry(
    registry: Registry, tenant: str, bases: tuple[str, str], only: Sequence[str] = (), *, again: bool = False
) -> tuple[list[OldTask], list[Left]]:
    """The tenant's tasks that have an active version for the first of `bases` (fingerprints), and those left, since
    they have one for the second already (`again`: none is left). Raises `InvalidRequest` where there is no such task,
    `NotFound` for the tenant."""
    await registry.tenants.find(tenant)
    old, new = bases
    records = [record for record in await _active(registry, tenant, old) if not only or record.task in only]
    _check_all_there(only, [record.task for record in records], f"the tenant {tenant}, for the old base,")
    if not records:
        raise InvalidRequest(
            f"The tenant {tenant} has no task for the old base ({old}): give --from as its server has --model. What "
            "that serves is at GET /v1/model; a base that is served in int8 or nf4 is another than the same in full.",
            param="--from",
        )
    there = {record.task: record.version for record in await _active(registry, tenant, new)}
    tasks, left = [], []
    for record in records:
        if record.task in there and not again:
            left.append(Left(record.task, record.version, f"version {there[record.task]} is for the new base already"))
            continue
        names = [entry.name for entry in record.manifest.files]
        files = {name: await registry.file(tenant, record.task, record.version, name) for name in names}
        tasks.append(OldTask(record.task, files, record.version))
    return tasks, left


async def _active(registry: Registry, tenant: str, base: str) -> list[VersionRecord]:
    found: list[VersionRecord] = []
    cursor: str | None = None
    while True:
        reply = await registry.tasks(tenant, base, cursor=cursor)
        found += reply.data
        cursor = reply.next_cursor
        if cursor is None:
            return found


def _check_all_there(only: Sequence[str], found: Sequence[str], where: str) -> None:
    missing = [name for name in only if name not in found]
    if missing:
        raise InvalidRequest(f"{where} has no task {', '.join(missing)}.", param="--task")


async def publish(registry: Registry, tenant: str, found: Migration, *, activate: bool, actor: str) -> Migration:
    """Each migrated task as a new version, told in what comes back. It is the active one for the new base, where
    `activate` says so; what is active for the old base stays so. A task that was deleted meanwhile stays deleted."""
    for one in found.moved:
        try:
            await registry.versions(tenant, one.task)
            done = await registry.publish(
                tenant, one.task, one.adapter.manifest, one.files,
                activate=activate, warnings=one.adapter.warnings, actor=actor,
            )  # fmt: skip
        except (TaskNotFound, QuotaExceeded) as error:
            found = found.told(one.task, note=f"not published: {error.message}")
            continue
        note = await _changed(registry, tenant, one.task, found.old_fingerprint, one.was)
        found = found.told(one.task, published=done.version.version, note=note)
    return found


async def _changed(registry: Registry, tenant: str, task: str, base: str, was: int | None) -> str | None:
    """Whether another version than the one that taught is by now active for the old base."""
    try:
        now = (await registry.active(tenant, task, base)).version
    except (TaskNotFound, VersionNotFound):
        return None
    return f"version {now} was made active meanwhile, and {was} was migrated: migrate it again" if now != was else None


def into_folders(folder: Path, found: Migration) -> None:
    """Each migrated task as a folder of its name, whole or not at all; one that is there is replaced."""
    for one in found.moved:
        put(folder / one.task, one.files)


def put(folder: Path, files: Mapping[str, bytes]) -> None:
    """The folder with these files, and no others."""
    with whole_folder(folder) as made:
        for name, data in files.items():
            (made / name).write_bytes(data)


def check_writable(folder: Path, tasks: Sequence[OldTask]) -> None:
    """Raises `InvalidRequest` where something is in a task's way that no migration has written."""
    for task in tasks:
        place = folder / task.name
        if place.exists() and not (place / CONFIG_FILE).is_file():
            raise InvalidRequest(f"{place} is there, and is no adapter's folder: give another --out.", param="--out")


def write_report(folder: Path, found: Migration) -> tuple[Path, Path]:
    """As JSON and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    as_json, as_page = folder / f"{REPORT}.json", folder / f"{REPORT}.md"
    as_json.write_text(json.dumps(figures(found), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    as_page.write_text(page(found), encoding="utf-8")
    return as_json, as_page
