"""The bench of the service beside its engine, over a tiny model: a real server, its clients, and every figure told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softmux.bench.bases.tiny import save_tiny
from softmux.bench.loads.lengths import parse_lengths
from softmux.bench.loads.load import Plan
from softmux.bench.loads.mixes import TaskMix
from softmux.bench.loads.race import Contender, closing
from softmux.bench.peers.service import main, service_contenders


def test_whole_and_streaming_find_nothing_of_each_other_in_the_server_that_they_share() -> None:
    plan = Plan(
        tasks=("a", "b"), vocabulary=5000, requests=12, mix=TaskMix(), input_len=parse_lengths("uniform:4:8"),
        output_len=parse_lengths("3"), request_rate=float("inf"), concurrency=4, warmups=3,
    )  # fmt: skip
    contenders = [Contender(one.name, one, change) for one, change in service_contenders("http://127.0.0.1:1", 1)]
    with closing(contenders):
        for load in (plan.warmup(), plan.load(0)):
            whole, streaming = [contender.change(load) for contender in contenders]
            assert whole is load
            assert [(job.task, len(job.ids), job.new_tokens) for job in streaming.jobs] == [
                (job.task, len(job.ids), job.new_tokens) for job in load.jobs
            ]
            assert streaming.arrivals is load.arrivals
            assert not {job.ids[:2] for job in streaming.jobs} & {job.ids[:2] for job in load.jobs}


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
    assert list(told["engine"]) == list(told["targets"])
    for name, [work] in told["engine"].items():
        assert sum(work["steps"].values()) >= 2 * 6, f"six replies of six tokens, four at a time: {name}"
