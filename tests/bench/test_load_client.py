"""The load client against real servers: what it sends, when, and what it makes of the replies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from softmux.bench.__main__ import main
from softmux.bench.clients.ceiling import canned_server
from softmux.bench.clients.client import Endpoint
from softmux.bench.clients.clients import HttpTarget
from softmux.bench.loads.arrivals import Arrivals, at_once
from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.workload import Job
from support.served import Served

TASKS = ("prompt-tuning", "prefix-tuning", "p-tuning-lstm")


def _load(count: int = 12, new: int = 6, arrivals: Arrivals | None = None) -> Load:
    """Bare requests and requests of every task, with prompts of different lengths."""
    kinds = (None, 0, 1, 2)
    jobs = tuple(Job(kinds[i % 4], tuple(range(20, 25 + i)), new) for i in range(count))
    return Load(jobs, arrivals or at_once(count, 4), TASKS)


def _run(endpoint: Endpoint, load: Load, processes: int = 1) -> Sequence[Outcome]:
    target = HttpTarget("one", endpoint, processes)
    try:
        return target.run(load)[0]
    finally:
        target.close()


def _most_at_once(outcomes: Sequence[Outcome]) -> int:
    edges = sorted([(o.sent, 1) for o in outcomes] + [(o.ended, -1) for o in outcomes])
    return int(np.cumsum([step for _, step in edges]).max())


def test_streams_are_read_as_they_come(server: Served) -> None:
    load = _load()
    outcomes = _run(Endpoint(server.url), load)
    assert [outcome.error for outcome in outcomes] == [None] * 12
    assert [outcome.tokens for outcome in outcomes] == [6] * 12
    assert [outcome.prompt_tokens for outcome in outcomes] == [len(job.ids) for job in load.jobs]
    for outcome in outcomes:
        assert 0 <= outcome.sent < outcome.events[0] <= outcome.events[-1] <= outcome.ended
        assert list(outcome.events) == sorted(outcome.events)
    assert max(len(outcome.events) for outcome in outcomes) > 1
    assert _most_at_once(outcomes) == 4


def test_replies_that_come_whole_have_the_same_tokens(server: Served) -> None:
    outcomes = _run(Endpoint(server.url, stream=False), _load())
    assert [(outcome.error, outcome.tokens, len(outcome.events)) for outcome in outcomes] == [(None, 6, 0)] * 12


def test_requests_are_sent_when_they_are_due(server: Served) -> None:
    times = np.array([0.0, 0.05, 0.4, 0.41, 0.8])
    outcomes = _run(Endpoint(server.url), _load(5, 2, Arrivals(times)))
    assert [outcome.due for outcome in outcomes] == times.tolist()
    assert all(outcome.sent >= outcome.due for outcome in outcomes)
    assert outcomes[-1].ended > 0.8


def test_several_processes_send_one_load(server: Served) -> None:
    load = _load()
    outcomes = _run(Endpoint(server.url), load, processes=2)
    assert [outcome.prompt_tokens for outcome in outcomes] == [len(job.ids) for job in load.jobs]
    assert [outcome.error for outcome in outcomes] == [None] * 12
    assert _most_at_once(outcomes) <= 4


def test_failures_are_told_by_their_code(server: Served) -> None:
    strange = (Job(0, (5, 6), 2), Job(1, (5, 6), 2), Job(None, (5, 10**6), 2), Job(None, (5, 6), 2))
    load = Load(strange, at_once(4), ("nowhere", "prompt-tuning"))
    outcomes = _run(Endpoint(server.url), load)
    assert [outcome.error for outcome in outcomes] == ["404 task_not_found", None, "422 invalid_request", None]


def test_a_server_that_is_not_there_is_a_failure_too() -> None:
    (outcome,) = _run(Endpoint("http://127.0.0.1:9"), _load(1))
    assert outcome.error == "ClientConnectorError"


@pytest.mark.parametrize("stream", [True, False])
def test_openais_completions(stream: bool) -> None:
    with canned_server() as url:
        endpoint = Endpoint(url, path="/v1/completions", openai=True, model="base", stream=stream)
        outcomes = _run(endpoint, _load())
    assert [(outcome.error, outcome.tokens) for outcome in outcomes] == [(None, 6)] * 12
    assert all(1 <= len(outcome.events) <= 6 if stream else not outcome.events for outcome in outcomes)


def test_bodies_name_the_task_where_the_route_wants_it() -> None:
    job = Job(0, (7, 8), 3)
    own = Endpoint("http://x")
    openai = replace(own, openai=True, model="base")
    assert own.params("topic") == {"task": "topic"}
    assert own.params(None) == openai.params("topic") == {}
    assert "model" not in json.loads(own.body(job, "topic"))
    assert json.loads(openai.body(job, "topic"))["model"] == "topic"
    assert json.loads(openai.body(job, None))["model"] == "base"
    assert json.loads(openai.body(job, None))["stream_options"] == {"include_usage": True}
    assert json.loads(own.body(Job(None, (), 3, "Hello"), None))["prompt"] == "Hello"


def test_the_command_measures_compares_and_writes(
    server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    words = ["serve", "--url", server.url, "--api-key", "smx-secret", "--num-prompts", "8", "--concurrency", "4"]
    words += ["--input-len", "uniform:4:9", "--output-len", "5", "--repeats", "2", "--num-warmups", "4"]
    words += ["--compare", "bare", "--goodput", "ttft:60000", "--task-mix", "zipf:1", "--save-detailed"]
    assert main([*words, "--output-json", str(figures), "--plot", str(plot)]) == 0
    found = json.loads(figures.read_text())
    assert "secret" not in found["command"]
    assert list(found["targets"]) == ["server", "bare model"]
    for target in found["targets"].values():
        assert [run["completed"] for run in target["repeats"]] == [8, 8]
        assert [run["total_output_tokens"] for run in target["repeats"]] == [40, 40]
        assert target["repeats"][0]["request_goodput"] == target["repeats"][0]["request_throughput"]
        assert len(target["requests"]) == 8
    assert len(found["ratios_of_output_throughput"]["bare model"]) == 2
    assert 'id="axes_4"' in plot.read_text()
    said = capsys.readouterr().out
    assert "bare model makes" in said
    assert "3 tasks, Zipf 1" in said


@pytest.mark.parametrize("how", ["--stream", "--no-stream"])
def test_the_command_speaks_openais_api_with_tasks_for_models(server: Served, tmp_path: Path, how: str) -> None:
    figures = tmp_path / "figures.json"
    words = ["serve", "--backend", "openai", "--url", server.url, "--tasks", "all", "--num-prompts", "6", how]
    words += ["--input-len", "5", "--output-len", "4", "--num-warmups", "0", "--repeats", "1"]
    assert main([*words, "--output-json", str(figures)]) == 0
    for target in json.loads(figures.read_text())["targets"].values():
        assert [(run["completed"], run["total_output_tokens"]) for run in target["repeats"]] == [(6, 24)]
    metrics = server.http.get("/metrics").text
    assert all(f'task="{task}"' in metrics for task in TASKS)


def test_a_trace_is_played(server: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, figures = tmp_path / "trace.jsonl", tmp_path / "figures.json"
    trace.write_text(
        '{"seconds": 0.2, "task": "prompt-tuning", "prompt": "Hello there", "max_tokens": 3}\n'
        '{"seconds": 0, "input_length": 12, "max_tokens": 2}\n'
    )
    words = ["serve", "--url", server.url, "--trace", str(trace), "--repeats", "1", "--num-warmups", "0"]
    assert main([*words, "--save-detailed", "--output-json", str(figures)]) == 0
    requests = json.loads(figures.read_text())["targets"]["server"]["requests"]
    assert [(request["due"], request["output_tokens"]) for request in requests] == [(0.0, 2), (0.2, 3)]
    trace.write_text('{"seconds": 0, "task": "nowhere", "input_length": 3}\n')
    assert main(words) == 2
    assert "'nowhere'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--url", "http://127.0.0.1:9"], "does not answer"),
        (["--goodput", "speed:3"], "ttft:200"),
        (["--no-stream", "--goodput", "ttft:3"], "no first token"),
        (["--plot", "figure.gif"], ".png, .svg or .pdf"),
        (["--trace", "x", "--request-rate", "3"], "arrival times of its own"),
        (["--output-json", "/nowhere/x.json"], "no folder /nowhere"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_plot_without_matplotlib_says_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["serve", "--plot", str(tmp_path / "x.png")]) == 2
    assert "softmux[bench]" in capsys.readouterr().err
