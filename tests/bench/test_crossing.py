"""The bench over more tasks than there is room for, small: its passes end, and tell where prompts were found."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from softmux.bench.bases.tiny import tiny_model
from softmux.bench.device import residency
from softmux.bench.device.crossing import Bench, Load, Pass, Room, _round, crossing
from softmux.bench.device.residency import Added
from softmux.scheduler.radix import RootKey

ROOM = Room(gpu=6, host=30)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    load = Load(low=8, high=8, least=2, most=4, outstanding=12)
    return Bench(tiny_model(torch.device("cpu")), 40, ROOM, load, tmp_path_factory.mktemp("disk"), rows=4)


def test_every_tier_is_used_as_tasks_outgrow_it(bench: Bench) -> None:
    told: list[str] = []
    found = crossing(bench, (4, 40), 40, room=ROOM, seconds=240, say=told.append)
    assert [(row["tasks"], row["mix"]) for row in found] == [(4, "uniform"), (4, "zipf"), (40, "uniform"), (40, "zipf")]
    for row in found:
        hits = row["hit_rates"]
        assert isinstance(hits, dict)
        assert row["requests"] == 40
        assert sum(hits.values()) == pytest.approx(1, abs=1e-3)
        slices = row["of_bare_slices"]
        assert isinstance(slices, list)
        assert len(slices) == 4
        assert row["of_bare"] == pytest.approx(statistics.median(slices), abs=1e-3)
    few, many = found[0]["hit_rates"], found[2]["hit_rates"]
    assert isinstance(few, dict)
    assert isinstance(many, dict)
    assert few["gpu"] > many["gpu"]
    assert "disk" not in few
    assert many["disk"] > 0
    assert len(told) == 4


def test_the_bare_model_runs_what_the_tasks_beside_it_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str | None, list[int]]] = []
    run = Bench.run

    def listened(self: Bench, roots: Iterable[RootKey], result: Pass, **options: Any) -> Pass:
        some = list(roots)
        asked.append((some[0].digest, [count for _, count in options["lengths"]]))
        return run(self, some, result, **options)

    bare, many = Pass(40, "bare"), Pass(40, "uniform")
    monkeypatch.setattr(Bench, "run", listened)
    _round(bench, bare, many, 20, until=float("inf"))
    assert [digest is None for digest, _ in asked] == [False, True, False]
    assert asked[0][1] == asked[1][1] == asked[2][1]
    assert (many.requests, bare.requests) == (40, 20)
    assert (many.tokens, bare.tokens) == (2 * sum(asked[1][1]), sum(asked[1][1]))
    assert len(many.of_bare) == 2
    _round(bench, bare, many, 20, until=0.0)
    assert len(many.of_bare) == 2, "a slice that was cut short is compared with none"


def test_single_requests_are_told_apart_by_tier(bench: Bench) -> None:
    bench.run(bench.roots, Pass(40, "warm-up"))
    times = bench.first_tokens(3)
    assert {tier: len(found) for tier, found in times.items()} == {"bare": 3, "gpu": 3, "host": 3, "disk": 3}
    assert all(seconds > 0 for found in times.values() for seconds in found)


def test_a_pass_ends_when_its_time_is_over(bench: Bench) -> None:
    done = bench.run(bench.tasks_of("zipf", 40, 10_000), Pass(40, "zipf"), until=0.0)
    assert done.requests == 0


def test_the_interval_of_a_difference() -> None:
    same = Added.of([0.001, 0.002, 0.003] * 20, [0.001, 0.002, 0.003] * 20)
    more = Added.of([0.011, 0.012, 0.013] * 20, [0.001, 0.002, 0.003] * 20)
    assert same is not None
    assert more is not None
    assert same.low <= 0 <= same.high
    assert more.median == pytest.approx(10)
    assert 8 < more.low <= more.high < 12
    assert Added.of([], [0.1]) is None


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from softmux.bench.device.residency import draw_plot

    rows: list[dict[str, object]] = [
        {"tasks": tasks, "mix": mix, "of_bare": 0.9, "hit_rates": {"gpu": 0.5, "disk": 0.5}}
        for mix in ("uniform", "zipf")
        for tasks in (16, 256)
    ]
    draw_plot(tmp_path / "plot.svg", rows)
    assert (tmp_path / "plot.svg").stat().st_size > 1000


def test_fewer_requests_than_slices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        residency.main(["--requests", "3"])
    assert "at least 4" in capsys.readouterr().err
