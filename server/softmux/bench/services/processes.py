"""What the processes of a running server hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

_KINDS = {"softmux.worker": "worker", "softmux.api.process": "api", "valkey-server": "registry", "guard.py": "guard"}


def family(pid: int) -> list[int]:
    """The process and all that descend from it. Linux."""
    found = [pid]
    for parent in found:
        for thread in _tasks(parent):
            try:
                found += [int(child) for child in (thread / "children").read_text().split()]
            except OSError:
                continue  # it has ended meanwhile
    return found


def resident_by_kind(server: int) -> Counter[str]:
    """Bytes that are resident (shared ones in each), by the kind of process: server, api, worker, registry, guard."""
    held: Counter[str] = Counter()
    for pid in family(server):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text()
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        kind = next((kind for word, kind in _KINDS.items() if word in command), "server")
        held[kind] += pages * 4096
    return held


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []
