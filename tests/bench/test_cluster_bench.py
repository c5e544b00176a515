"""The bench of a cluster, with real replicas behind Ray Serve on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_cluster_finds_more_adapters_in_memory_and_loses_no_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from softmux.bench.cluster.bench import main

    written = tmp_path / "figures.json"
    sizes = ("--tasks", "100", "--warm", "10", "--requests", "400", "--clients", "8")
    assert main(["--replicas", "2", *sizes, "--output-json", str(written)]) == 0, capsys.readouterr().out
    found = json.loads(written.read_text())
    hits = {row["policy"]: row["hits"] for row in found["rows"]}
    assert hits["warm_first"] > hits["random"]
    assert not any(row["failed"] for row in found["rows"])
    assert found["churn"]["failed"] == {}
    assert found["churn"]["requests"] > 0
