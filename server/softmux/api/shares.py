"""What each of several replicas on one host gets of it: devices, threads, memory, a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from softmux.settings import Settings

_SHARED = ("host_cache_bytes", "disk_cache_bytes")
"""Settings that say what all replicas may take together."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def replica_settings(settings: Settings, names: Set[str]) -> dict[str, Any]:
    """The settings of those `names`, as JSON, each replica's part of what the host has once."""
    said = settings.model_dump(mode="json", include=set(names))
    if settings.replicas > 1:
        said |= {name: said[name] // settings.replicas for name in _SHARED}
        if settings.threads is None and not _gpus(settings):
            said["threads"] = max(1, (os.cpu_count() or 1) // settings.replicas // settings.tensor_parallel)
    return said


def replica_environment(settings: Settings, number: int) -> Mapping[str, str] | None:
    """The environment that shows a replica its own GPUs alone; None: it inherits the server's as it is."""
    if settings.replicas == 1 or not _gpus(settings):
        return None
    visible = os.environ.get(_VISIBLE)
    names = [name.strip() for name in visible.split(",") if name.strip()] if visible else None
    each = settings.tensor_parallel
    own = range(number * each, (number + 1) * each)
    told = names[own.start : own.stop] if names is not None and own.stop <= len(names) else map(str, own)
    return {**os.environ, _VISIBLE: ",".join(told)}


def replica_data(settings: Settings, number: int) -> Path:
    """The folder of its disk tier: each its own, since each keeps book of what is in there."""
    return settings.data if number == 0 else settings.data / f"replica-{number}"


def _gpus(settings: Settings) -> bool:
    return settings.device == "cuda" or (settings.device == "auto" and Path("/dev/nvidiactl").exists())
