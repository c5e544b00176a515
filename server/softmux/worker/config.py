"""What the supervisor tells a worker at its start: one line of JSON on its standard input.

Not an argument: the registry's URL may hold a password, and every user of the machine can read arguments.
"""

from __future__ import annotations

from typing import Any

import msgspec

REFUSED = 3
"""Exit code of a worker that must not be restarted: the model cannot be served. Its last line of stderr says why."""


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`endpoint` is the ipc:// address to bind; `settings` holds the fields of `Settings` the engine needs, as JSON.

    The worker reads adapters by itself (`softmux.registry.reader`) from `registry_url` (redis:// or unix://) and
    `blob_url`; `data` is the folder of the disk tier.
    """

    endpoint: str
    registry_url: str
    blob_url: str | None
    data: str
    settings: dict[str, Any]
    supervisor: int | None = None
    """The process that started it, and keeps it: the worker ends once that is no more."""
    recorder: str | None = None
    """The file of its `FlightRecorder`, which the supervisor has made."""


class RankConfig(msgspec.Struct, frozen=True):
    """What rank 0, the worker, tells another rank at its start, likewise. `meeting`: the file by which all find each
    other. `orders` and `gifts`: the ipc:// addresses where rank 0 says what to run, and hands out adapters. `leader`:
    rank 0's process."""

    rank: int
    meeting: str
    orders: str
    gifts: str
    leader: int
    settings: dict[str, Any]
