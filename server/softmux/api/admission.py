"""An upload's way in: checked as files, run once as a canary, then published. Uploads and `--adapters` both take it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from softmux.errors import BaseMismatch, SoftmuxError
from softmux.formats.config import CONFIG_FILE, base_label
from softmux.formats.folder import load_folder, read_adapter
from softmux.registry.registry import Registry
from softmux.types import DEFAULT_TENANT, Manifest, ModelSpec
from softmux.worker.messages import Admit
from softmux.worker.replicas import Replicas

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Admission:
    """An adapter that may be published. `warnings` and `checks` are sentences for a person."""

    manifest: Manifest
    warnings: tuple[str, ...]
    checks: tuple[str, ...]


async def admit(
    worker: Replicas,
    tenant: str,
    files: Mapping[str, bytes],
    *,
    check: Callable[[Manifest], None] = lambda manifest: None,
) -> Admission:
    """Nothing is stored. Raises `InvalidAdapter`, `BaseMismatch`, `TooLarge`, or `EngineDown`; and what `check` does,
    before anything runs."""
    adapter = await asyncio.to_thread(read_adapter, files, worker.spec)
    check(adapter.manifest)
    ran = await worker.admit(
        Admit(id="adm-" + secrets.token_hex(8), tenant=tenant, manifest=adapter.manifest, files=dict(files))
    )
    return Admission(adapter.manifest, adapter.warnings + ran.warnings, adapter.checks + ran.checks)


async def publish_folders(worker: Replicas, registry: Registry, folder: Path, max_bytes: int) -> list[str]:
    """Publishes the adapters in `folder` for the tenant `default`, each under its folder's name, where the task has no
    version and was not deleted; the tasks it published. One made for another base is left to that base's server. One
    that can't be served, or has more than `max_bytes`, is told in the log, and does not keep the others out."""
    tasks = []
    for path in await asyncio.to_thread(_adapter_folders, folder):
        files: dict[str, bytes] = {}
        try:
            files = await asyncio.to_thread(load_folder, path, max_bytes=max_bytes)
            admission = await admit(worker, DEFAULT_TENANT, files)
            published = await registry.publish_if_absent(
                DEFAULT_TENANT, path.name, admission.manifest, files, warnings=admission.warnings, actor="start"
            )
        except SoftmuxError as error:
            if _of_another_base(error, files, worker.spec):
                log.info("left out at start: made for another base", task=path.name, reason=error.message)
                continue
            log.error("an adapter was not published at start", task=path.name, param=error.param, reason=error.message)
        else:
            if published is not None:
                log.info("published at start", task=path.name, version=published.version.version)
                tasks.append(path.name)
    return tasks


def _of_another_base(error: SoftmuxError, files: Mapping[str, bytes], spec: ModelSpec) -> bool:
    """Whether a refused folder belongs to another server: its fingerprint says so, or its config does not fit this
    base and names another one."""
    if isinstance(error, BaseMismatch):
        return True
    label = base_label(files[CONFIG_FILE]) if CONFIG_FILE in files else None
    return bool(label) and label != spec.model_id and (error.param or "").startswith(CONFIG_FILE)


def _adapter_folders(folder: Path) -> list[Path]:
    found = []
    try:
        for path in sorted(folder.iterdir()):
            try:
                if (path / CONFIG_FILE).is_file():
                    found.append(path)
            except OSError as error:  # a disk's lost+found, say
                log.warning("left out at start: it can't be looked into", folder=str(path), reason=error.strerror)
    except OSError as error:  # it was there when the server began
        log.error("the folder of adapters to publish at start can't be read", folder=str(folder), reason=error.strerror)
        return []
    if not found:
        log.warning("the folder of adapters to publish at start has none", folder=str(folder))
    return found
