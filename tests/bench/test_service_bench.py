"""The bench of the service beside its engine, over a tiny model: a real server, its clients, and every figure told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softmux.bench.bases.tiny import save_tiny
from softmux.bench.peers.service import main


@pytest.mark.nightly
def test_whole_and_streaming_are_told_beside_the_engine(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model")
    asked = ["--model", str(tmp_path / "model"), "--threads", "1", "--repeats", "1", "--clients", "4", "--tasks", "4"]
    asked += [
        "--input-len",
        "uniform:4:8",
        "--output-len",
        "6",
        "--kv-tokens",
        "1024",
        "--client-processes",
        "2",
        "--requests",
        "6",
    ]
    assert main([*asked, "--json", str(tmp_path / "told.json")]) == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert list(told["targets"]) == ["engine in-process", "HTTP, whole replies", "HTTP, streaming"]
    assert all(each["completed"] == 6 for runs in told["targets"].values() for each in runs["repeats"])
