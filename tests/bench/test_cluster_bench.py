"""The bench of a cluster, with real replicas behind Ray Serve on this machine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from softmux.bench.cluster import bench as bench_module
from softmux.bench.cluster.bench import Bench, main
from softmux.bench.cluster.servers import ReplicaServer


def test_a_replica_is_there_again_when_requests_are_sent_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server answers before: who killed the other then would leave the cluster none, and its clients no answer."""
    bench, known = Bench.__new__(Bench), [1, 1, 2]
    servers = [ReplicaServer(pid, 1, "http://127.0.0.1:1") for pid in (2, 3)]
    monkeypatch.setattr(bench_module, "_ready", lambda server: True)
    monkeypatch.setattr(Bench, "servers", lambda self: servers)
    monkeypatch.setattr(Bench, "running", lambda self: known.pop(0))
    asyncio.run(bench._restored(2, ReplicaServer(4, 1, "http://127.0.0.1:1")))
    assert not known


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_cluster_finds_more_adapters_in_memory_and_loses_no_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = tmp_path / "figures.json"
    sizes = ("--tasks", "100", "--warm", "10", "--requests", "400", "--clients", "8")
    assert main(["--replicas", "2", *sizes, "--output-json", str(written)]) == 0, capsys.readouterr().out
    found = json.loads(written.read_text())
    hits = {row["policy"]: row["hits"] for row in found["rows"]}
    assert hits["warm_first"] > hits["random"]
    assert not any(row["failed"] for row in found["rows"])
    assert found["churn"]["failed"] == {}
    assert found["churn"]["requests"] > 0
