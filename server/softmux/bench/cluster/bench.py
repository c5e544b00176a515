"""softmux bench cluster: replicas of a tiny model behind Ray Serve, and the same routing simulated at full size.

Real processes on this machine: uploads go through the cluster, then Zipf traffic over more tasks than the replicas'
memory holds, routed by adapter and at random; then replicas are killed, leave and join under load. With --simulate no
process is started: see `softmux.bench.cluster.scale`.

Here:            softmux bench cluster --replicas 1 2 4 --tasks 500
At full size:    softmux bench cluster --simulate --requests 100000 --plot docs/images/cluster.svg
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from softmux.bench.bases.tiny import save_tiny
from softmux.bench.cluster.load import Answered, ClusterLoad, upload
from softmux.bench.cluster.servers import ReplicaServer, replica_servers
from softmux.bench.loads.report import write_json
from softmux.registry.registry import Registry

if TYPE_CHECKING:
    from softmux.cluster.app import ClusterSettings

_NAME = "softmux-bench"
_SERVER = {"device": "cpu", "threads": "1", "log_level": "error", "disk_cache_bytes": "0"}
_SMALL = {"kv_tokens": "512", "resident_vectors": "64", "max_rows": "16"}
_WAIT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Row:
    replicas: int
    policy: str
    requests: int
    misses: float
    answered: Answered

    @property
    def hits(self) -> float:
        """Share of the requests that found their adapter in memory."""
        return 1 - self.misses / self.requests

    def line(self) -> str:
        median, high = np.percentile(self.answered.seconds, (50, 99)) * 1e3
        return (
            f"{self.replicas:8d}  {self.policy:12} {self.hits:8.1%} {self.requests / self.answered.took:12.1f} "
            f"{median:10.0f} {high:8.0f} {self.answered.failed.total():8d} {self.answered.cut:5d}"
        )


class Bench:
    """One Ray on this machine, one registry, and an application that is deployed anew for each row."""

    def __init__(self, options: argparse.Namespace, scratch: Path, registry: Registry) -> None:
        self._options, self._scratch, self._registry = options, scratch, registry
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._url = f"http://127.0.0.1:{self._port}"
        self._load = ClusterLoad(self._url, options.tasks, options.zipf, options.clients, options.seed)
        self._server = dict(_SERVER)

    def start(self) -> None:
        import ray
        from ray import serve

        ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
        serve.start(http_options={"host": "127.0.0.1", "port": self._port})

    def stop(self) -> None:
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()

    def deploy(self, replicas: int, policy: str) -> None:
        """Returns when so many replicas answer; those beyond have left, or are on their way."""
        from ray import serve

        from softmux.cluster.app import build

        serve.run(build(self._settings(replicas, policy)), name=_NAME)

    def delete(self) -> None:
        from ray import serve

        serve.delete(_NAME)

    def _settings(self, replicas: int, policy: str) -> ClusterSettings:
        from softmux.cluster.app import ClusterSettings

        return ClusterSettings(
            model=str(self._scratch / "model"),
            redis=self._registry.url,
            blobs=self._registry.blob_url,
            server=self._server,
            replicas=replicas,
            cpus=0.1,
            policy=policy,
            warm_adapters=self._options.warm,
            free=self._options.free,
            start_seconds=_WAIT_SECONDS,
            drain_seconds=30,
        )

    def publish(self) -> None:
        """All tasks, by one replica with room for all; then replicas get room for `--warm` of them."""
        self.deploy(1, "warm_first")
        asyncio.run(upload(self._url, self._options.tasks, self._options.virtual))
        asyncio.run(self._load.run(200))
        size = self.servers()[0].bytes_of_an_adapter()
        self._server |= _SMALL | {"host_cache_bytes": str(round(self._options.warm * size))}
        self.delete()

    def running(self) -> int:
        """Replicas that Serve has requests sent to, whatever has become of their servers."""
        from ray import serve

        states: dict[str, int] = serve.status().applications[_NAME].deployments["Replica"].replica_states
        return states.get("RUNNING", 0)

    def servers(self) -> list[ReplicaServer]:
        return replica_servers(self._registry.url)

    def row(self, replicas: int, policy: str) -> Row:
        self.deploy(replicas, policy)
        asyncio.run(self._load.run(self._options.requests // 2))  # until memories are full
        before = self._misses()
        answered = asyncio.run(self._load.run(self._options.requests))
        return Row(replicas, policy, self._options.requests, self._misses() - before, answered)

    def _misses(self) -> float:
        return sum(count for server in self.servers() for tier, count in server.loads().items() if tier != "host")

    def churn(self, replicas: int) -> Answered:
        """Under load: a replica's actor is killed, then another's server; then they are replaced by one less, and by
        one more."""
        return asyncio.run(self._churn(replicas))

    async def _churn(self, replicas: int) -> Answered:
        done = asyncio.Event()
        load = asyncio.create_task(self._load.run(1_000_000, done))
        await asyncio.sleep(3)
        try:
            for what, pid in (("actor", "actor"), ("server", "pid")):
                victim = (await asyncio.to_thread(self.servers))[0]
                _tell(f"a replica's {what} is killed")
                os.kill(getattr(victim, pid), signal.SIGKILL)
                await self._restored(replicas, victim)
            for wanted in (replicas - 1, replicas):  # Serve replaces all of them for it, one after the other
                _tell(f"an upgrade to {wanted} replicas")
                await asyncio.to_thread(self.deploy, wanted, "warm_first")
                await asyncio.sleep(5)
        finally:
            done.set()
        return await load

    async def _restored(self, replicas: int, victim: ReplicaServer) -> None:
        """Returns when as many answer as there were, and Serve has them all: a server is ready before Serve knows of
        it, and who then killed the other would leave clients none."""
        ends = time.monotonic() + _WAIT_SECONDS
        while time.monotonic() < ends:
            found = await asyncio.to_thread(self.servers)
            gone = victim.pid not in {server.pid for server in found}
            there = gone and len(found) >= replicas and await asyncio.to_thread(self.running) >= replicas
            if there and all([await asyncio.to_thread(_ready, server) for server in found]):
                return
            await asyncio.sleep(0.5)
        raise RuntimeError(f"{replicas} replicas were not there again within {_WAIT_SECONDS} s")


def _tell(words: str) -> None:
    sys.stdout.write(f"{words}\n")
    sys.stdout.flush()


def _ready(server: ReplicaServer) -> bool:
    import httpx

    try:
        return httpx.get(f"{server.url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    found: dict[str, Any] = {"rows": []}
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as loop:
        scratch = Path(folder)
        save_tiny(scratch / "model")
        registry = loop.run(Registry.open(None, scratch / "data"))
        bench = Bench(options, scratch, registry)
        bench.start()
        try:
            bench.publish()
            out = sys.stdout
            out.write(f"{options.tasks} tasks, Zipf {options.zipf:g}; a replica's memory holds {options.warm}\n")
            out.write("replicas  routing       in memory   requests/s  median ms   99 %   failed   cut\n")
            for replicas in options.replicas:
                for policy in ("random", "warm_first") if replicas > 1 else ("warm_first",):
                    row = bench.row(replicas, policy)
                    out.write(row.line() + "\n")
                    out.flush()
                    found["rows"].append(
                        {"replicas": replicas, "policy": policy, "hits": row.hits, "failed": row.answered.failed}
                    )
                    if policy == "random" or replicas != max(options.replicas):
                        bench.delete()
            if max(options.replicas) > 1 and not options.no_churn:
                churned = bench.churn(max(options.replicas))
                found["churn"] = {
                    "requests": len(churned.seconds),
                    "failed": dict(churned.failed),
                    "cut": churned.cut,
                    "slowest_seconds": max(churned.seconds),
                }
                out.write(
                    f"{len(churned.seconds)} requests meanwhile: {churned.failed.total()} failed, "
                    f"{churned.cut} streams cut; the slowest took {max(churned.seconds):.1f} s\n"
                )
                out.writelines(f"  {count} × {what}\n" for what, count in churned.failed.items())
        finally:
            bench.stop()
            loop.run(registry.close())
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="softmux bench cluster", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--warm", type=int, default=25, help="adapters that a replica's host memory holds (25)")
    parser.add_argument("--virtual", type=int, default=24, help="vectors of a soft prompt (24)")
    parser.add_argument("--free", type=int, default=8, help="requests that a replica takes whatever the mean is (8)")
    parser.add_argument("--requests", type=int, default=2000, help="measured for each row, after half as many (2000)")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-churn", action="store_true", help="kill no replica at the end, and let none leave or join"
    )
    parser.add_argument("--simulate", action="store_true", help="100 GPUs and 1,000,000 adapters, in this process")
    parser.add_argument("--gpus", type=int, default=100, help="simulated (100)")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="what a GPU costs an hour, simulated (3)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what was simulated")
    parser.add_argument("--output-json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.simulate:
        from softmux.bench.cluster.scale import run

        found = run(options.gpus, options.requests, options.seed, options.gpu_hour, options.plot)
    else:
        found = _measure(options)
    if options.output_json is not None:
        write_json(options.output_json, found)
    return 1 if found.get("churn", {}).get("failed") else 0
