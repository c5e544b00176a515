"""The `softmux serve` processes of a cluster's replicas on this machine, as Linux shows them, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True, slots=True)
class ReplicaServer:
    """`actor` is the process id of the replica's actor, whose child the server is."""

    pid: int
    actor: int
    url: str

    def loads(self) -> dict[str, float]:
        """Adapters made ready since its start, by the tier that had them."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return {
            sample.labels["tier"]: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "softmux_adapter_loads_total"
        }

    def bytes_of_an_adapter(self) -> float:
        """What one takes in host memory, on the average of those that are there."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name in ("softmux_adapters_host_bytes", "softmux_adapters_in_host_memory")
        }
        return values["softmux_adapters_host_bytes"] / values["softmux_adapters_in_host_memory"]


def replica_servers(redis: str) -> list[ReplicaServer]:
    """Those that share this Redis and have an actor above them."""
    return [found for found in _servers(redis) if "ServeReplica" in _command(found.actor)]


def _servers(redis: str) -> Iterator[ReplicaServer]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if b"softmux.cli\0serve" not in (folder / "cmdline").read_bytes():
                continue
            pairs = (pair.partition("=") for pair in (folder / "environ").read_text().split("\0"))
            environment = {name: value for name, _, value in pairs}
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        if environment.get("SOFTMUX_REDIS") == redis:
            yield ReplicaServer(int(folder.name), parent, f"http://127.0.0.1:{environment['SOFTMUX_PORT']}")


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
