"""What OpenAI's routes call models: the base model, and each task."""

from __future__ import annotations

from typing import Any

from softmux.api.generation import adapter_json
from softmux.api.services import Resolved, Services
from softmux.errors import SoftmuxError
from softmux.registry.records import VersionRecord
from softmux.types import AdapterRef, Manifest

FIELD = "model"
OWNER = "softmux"
"""Of the base model, as OpenAI's clients are told."""


def task_of(services: Services, model: str) -> str | None:
    """The task that `model` names; None for the base model, whose id goes before a task's name."""
    return None if model == services.worker.spec.model_id else model


def in_its_words(error: SoftmuxError) -> SoftmuxError:
    """What is wrong with a task, or its version, is wrong with the field `model`."""
    if error.param in ("task", "version"):
        error.param = FIELD
    return error


def base_json(services: Services) -> dict[str, Any]:
    spec = services.worker.spec
    return _model_json(services, spec.model_id, services.began, OWNER, None, None)


def listed_json(services: Services, tenant: str, record: VersionRecord) -> dict[str, Any]:
    """A task of the listing, under the name by which `tenant` calls it."""
    name = record.task if record.tenant == tenant else f"{record.tenant}/{record.task}"
    manifest = record.manifest
    adapter = AdapterRef(record.tenant, name, record.version, manifest.digest, manifest.method, manifest.virtual_tokens)
    return _model_json(services, name, int(record.created_at), record.tenant, adapter, manifest)


def resolved_json(services: Services, name: str, resolved: Resolved) -> dict[str, Any]:
    """What `name` means now."""
    adapter = resolved.adapter
    if adapter is None:
        return base_json(services)
    return _model_json(services, name, int(resolved.created_at), adapter.tenant, adapter, resolved.manifest)


def _model_json(
    services: Services, name: str, created: int, owner: str, adapter: AdapterRef | None, manifest: Manifest | None
) -> dict[str, Any]:
    spec = services.worker.spec
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": owner,
        "root": spec.model_id,
        "parent": None if adapter is None else spec.model_id,
        "max_model_len": spec.context_length,
        "generates": spec.family != "encoder" and (manifest is None or manifest.head is None),
        "adapter": None if adapter is None else adapter_json(adapter),
    }
