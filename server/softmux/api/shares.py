"""What each of several replicas on one host gets of it: devices, threads, memory, a folder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from softmux.errors import SelfTestFailed
from softmux.settings import Settings

_SHARED = ("host_cache_bytes", "disk_cache_bytes")
"""Settings that say what all replicas may take together."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def replica_settings(settings: Settings, names: Set[str]) -> dict[str, Any]:
    """The settings of those `names`, as JSON, each replica's part of what the host has once."""
    said = settings.model_dump(mode="json", include=set(names))
    if settings.replicas > 1:
        said |= {name: said[name] // settings.replicas for name in _SHARED}
        if settings.threads is None and not on_gpus(settings):
            said["threads"] = max(1, (os.cpu_count() or 1) // settings.replicas // settings.tensor_parallel)
    return said


def replica_environment(settings: Settings, number: int) -> Mapping[str, str] | None:
    """The environment that shows a replica its own GPUs alone; None: it inherits the server's as it is. Raises
    `SelfTestFailed` where the server was given fewer than all replicas need."""
    if settings.replicas == 1 or not on_gpus(settings):
        return None
    each, visible = settings.tensor_parallel, os.environ.get(_VISIBLE)
    wanted = settings.replicas * each
    if visible is None:
        there, names = gpus_present() or wanted, [str(gpu) for gpu in range(wanted)]
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
        there = len(names)
    if there < wanted:
        shown = "this machine shows" if visible is None else f"{_VISIBLE} names"
        raise SelfTestFailed(
            f"--replicas {settings.replicas}, of {each} each, need {wanted} GPUs, and {shown} {there}: lower it, or "
            "show the server more"
        )
    return {**os.environ, _VISIBLE: ",".join(names[number * each : (number + 1) * each])}


def gpus_present() -> int:
    """How many GPUs the kernel's driver shows here; 0 where it does not say."""
    return sum(path.name.removeprefix("nvidia").isdigit() for path in Path("/dev").glob("nvidia[0-9]*"))


def replica_data(settings: Settings, number: int) -> Path:
    """The folder of its disk tier: each its own, since each keeps book of what is in there."""
    return settings.data if number == 0 else settings.data / f"replica-{number}"


def on_gpus(settings: Settings) -> bool:
    """Whether the engine will run on GPUs, told without torch."""
    hidden = os.environ.get(_VISIBLE) in ("", "-1")
    return settings.device == "cuda" or (settings.device == "auto" and not hidden and Path("/dev/nvidiactl").exists())
