"""The same load on the engine in this process, beside its peers."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softmux.bench.__main__ import main
from softmux.bench.loads.arrivals import Arrivals, at_once
from softmux.bench.loads.lengths import parse_lengths
from softmux.bench.loads.load import Plan
from softmux.bench.loads.mixes import TaskMix
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.race import Contender, run_race
from softmux.bench.loads.workload import Job, random_prompt_adapter
from softmux.bench.peers.offline import OfflineEngine, OfflineTarget
from softmux.errors import InvalidRequest
from softmux.settings import Settings


@pytest.fixture(scope="module")
def engine(base: tuple[Any, Path]) -> Iterator[OfflineEngine]:
    settings = Settings(model=str(base[1]), device="cpu", dtype="float32", threads=1, kv_tokens=4096)
    made = OfflineEngine(settings, [random_prompt_adapter(number, 48) for number in range(3)])
    yield made
    made.engine.check_integrity()
    made.close()


def _jobs(count: int) -> list[Job]:
    return [Job((None, 0, 1, 2)[i % 4], tuple(range(20, 26 + i)), 4) for i in range(count)]


def test_a_closed_loop_keeps_its_limit(engine: OfflineEngine) -> None:
    run = engine.serve(_jobs(10), at_once(10, 3))
    edges = sorted([(o.sent, 1) for o in run.outcomes] + [(o.ended, -1) for o in run.outcomes])
    assert int(np.cumsum([step for _, step in edges]).max()) == 3
    assert [(o.error, o.tokens, len(o.events)) for o in run.outcomes] == [(None, 4, 4)] * 10
    assert (run.tokens, [o.prompt_tokens for o in run.outcomes]) == (40, [6 + i for i in range(10)])


def test_requests_join_when_they_are_due(engine: OfflineEngine) -> None:
    times = np.array([0.0, 0.01, 0.3])
    run = engine.serve(_jobs(3), Arrivals(times))
    assert all(outcome.sent >= outcome.due for outcome in run.outcomes)
    assert run.outcomes[-1].sent >= 0.3


def test_a_request_that_can_never_run_is_an_outcome_or_is_raised(engine: OfflineEngine) -> None:
    jobs = [Job(None, (5, 10**6), 2), Job(None, (5, 6), 2)]
    outcomes = engine.serve(jobs, at_once(2)).outcomes
    assert [outcome.error for outcome in outcomes] == ["invalid_request", None]
    with pytest.raises(InvalidRequest, match="not below"):
        engine.run(jobs)


class _Recorder:
    """Passes loads on to an engine, and remembers them."""

    def __init__(self, name: str, inner: OfflineTarget, order: list[str]) -> None:
        self.name, self._inner, self._order = name, inner, order
        self.loads: list[tuple[Job, ...]] = []

    def run(self, load: Any) -> tuple[list[Outcome], None]:
        self._order.append(self.name)
        self.loads.append(load.jobs)
        return self._inner.run(load)

    def close(self) -> None:
        """The engine is the fixture's."""


def _plan(**changes: Any) -> Plan:
    chosen: dict[str, Any] = {"tasks": ("a", "b", "c"), "vocabulary": 420, "requests": 6, "mix": TaskMix()}
    chosen |= {"input_len": parse_lengths("uniform:4:8"), "output_len": parse_lengths("2"), "warmups": 3}
    return Plan(**(chosen | {"request_rate": float("inf"), "concurrency": 4} | changes))


def test_contenders_take_turns_over_the_same_requests(engine: OfflineEngine) -> None:
    order: list[str] = []
    one, two = (_Recorder(name, OfflineTarget(name, engine), order) for name in ("one", "two"))
    race = run_race(_plan(), [Contender("one", one), Contender("two", two)], repeats=3)
    assert order == ["one", "two", "one", "two", "two", "one", "one", "two"]
    assert one.loads == two.loads
    assert len({jobs[0].ids for jobs in one.loads}) == 4
    assert {len(summaries) for summaries in race.summaries.values()} == {3}
    assert all(summary.completed == 6 for summaries in race.summaries.values() for summary in summaries)
    rates = [[summary.output_throughput for summary in race.summaries[name]] for name in ("one", "two")]
    assert race.ratios() == {"two": [b / a for a, b in zip(*rates, strict=True)]}


@pytest.mark.parametrize("others", [False, True])
def test_a_race_leaves_frozen_what_others_froze_and_nothing_else(engine: OfflineEngine, others: bool) -> None:
    gc.unfreeze()
    if others:
        gc.freeze()
    seen: list[int] = []
    contender = Contender("one", OfflineTarget("one", engine))
    try:
        run_race(
            _plan(requests=1, warmups=0), [contender], repeats=1, watch=lambda *_: seen.append(gc.get_freeze_count())
        )
        assert seen[0] > 0
        assert bool(gc.get_freeze_count()) is others
    finally:
        gc.unfreeze()


def test_a_seed_gives_the_same_load_again() -> None:
    assert _plan().load(1).jobs == _plan().load(1).jobs
    assert _plan().load(1).jobs != _plan().load(2).jobs
    assert _plan().load(1).jobs != _plan(seed=5).load(1).jobs
    assert [job.task for job in _plan(warmups=5).warmup().jobs] == [0, 1, 2, 0, 1]


def test_the_command_runs_its_peers_on_the_same_requests(
    base: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures.json"
    words = ["offline", "--model", str(base[1]), "--device", "cpu", "--threads", "1", "--tasks", "2"]
    words += ["--num-prompts", "4", "--input-len", "uniform:4:8", "--output-len", "2", "--repeats", "1"]
    words += ["--num-warmups", "2", "--peers", "padded,generate_batch,set_adapter,from_pretrained,vllm-embeds"]
    words += ["--compare", "bare", "--compare", "group_by_adapter=false", "--set", "kv_tokens=2048"]
    assert main([*words, "--output-json", str(figures)]) == 0
    targets = json.loads(figures.read_text())["targets"]
    assert len(targets) == 7
    assert {target["repeats"][0]["total_output_tokens"] for target in targets.values()} == {8}
    assert len({target["repeats"][0]["total_input_tokens"] for target in targets.values()}) == 1
    assert "left out: vllm-embeds: vllm is not installed" in capsys.readouterr().out


def test_what_is_wrong_is_said(base: tuple[Any, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["offline", "--model", str(base[1]), "--device", "cpu"]
    for more, said in (
        (["--set", "kv_pages=3"], "no setting kv_pages"),
        (["--set", "kv_tokens=1"], "kv_tokens"),
        (["--adapters", "/nowhere"], "no folder /nowhere"),
        (["--peers", "magic"], "No such peer: magic"),
    ):
        assert main([*words, *more]) == 2
        assert said in " ".join(capsys.readouterr().err.split())


def test_random_weights_need_a_config_alone(
    base: tuple[Any, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((base[1] / "config.json").read_bytes())
    words = ["offline", "--model", str(tmp_path), "--load-format", "dummy", "--device", "cpu", "--threads", "1"]
    words += ["--num-prompts", "3", "--input-len", "5", "--output-len", "2", "--repeats", "1", "--num-warmups", "0"]
    assert main([*words, "--peers", "padded"]) == 0
    assert "transformers, padded batch, bare: 3 requests" in capsys.readouterr().out
