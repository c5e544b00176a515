from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import pytest

from softmux.bench.cluster.scale import POLICIES, Point, best_loads, draw
from softmux.bench.cluster.simulation import Adapters, Service, homes, simulate
from softmux.routing.policies import RandomChoice
from softmux.routing.rendezvous import Rendezvous

SERVICE = Service(steps=((0, 0.01), (4, 0.01)), prefill=0.002, rows=4, tokens=10)
FEW = Adapters("few", count=8, fit=2, size=1e6, latency=0.1, bandwidth=1e7)
NAMES = ("a", "b", "c")


def test_one_request_takes_what_was_measured() -> None:
    """A miss: 0.1 s of fetching and 0.1 s of latency, then the prefill; a hit has its first token after the prefill."""
    chosen, arrivals = np.array([3, 3]), np.array([0.0, 1.0])
    found = simulate(RandomChoice(Random(0)), SERVICE, FEW, chosen, arrivals, ["only"], [[]], uncounted=0)
    assert found.first_token == pytest.approx([0.202, 0.002])
    assert found.hits == 1
    assert found.ended == pytest.approx(1.0 + 0.002 + 10 * 0.01)


def test_rows_run_beside_each_other_and_those_beyond_wait() -> None:
    chosen, arrivals = np.zeros(6, dtype=np.int64), np.zeros(6)
    found = simulate(RandomChoice(Random(0)), SERVICE, FEW, chosen, arrivals, ["only"], [[0]], uncounted=0)
    first = sorted(found.first_token)
    assert first[:4] == pytest.approx([0.002, 0.004, 0.006, 0.008])
    ended = 0.008 + 10 * 0.01  # of the four, whose steps began when all prompts were done
    assert first[4:] == pytest.approx([ended + 0.002, ended + 0.004])


def test_a_memory_keeps_what_was_used_last() -> None:
    chosen, arrivals = np.array([0, 1, 0, 2, 0, 1]), np.arange(6.0)
    found = simulate(RandomChoice(Random(0)), SERVICE, FEW, chosen, arrivals, ["only"], [[]], uncounted=0)
    assert found.hits == 2, "0 twice; 1 gave way to 2"


def test_homes_are_where_the_router_says() -> None:
    ring, found = Rendezvous(), homes(200, NAMES)
    assert [ring.order(f"task-{number}", NAMES)[0] for number in range(200)] == [NAMES[place] for place in found]


def test_a_policy_that_knows_adapters_finds_more_of_them() -> None:
    adapters = Adapters("some", count=300, fit=30, size=1e3)
    random = np.random.default_rng(0)
    chosen, arrivals = adapters.draw(3000, random), np.cumsum(random.exponential(0.01, 3000))
    hits = {
        name: simulate(make(adapters.fit), SERVICE, adapters, chosen, arrivals, NAMES, [[]] * 3, uncounted=1000).hits
        for name, make in POLICIES.items()
    }
    assert hits["warm first (softmux)"] > 1.3 * hits["random"]


def test_the_largest_load_within_the_limit_is_taken_and_figures_can_be_drawn(tmp_path: Path) -> None:
    found = [
        Point("kind", "policy", load, hits=0.5, median=0.1, high=high, fetched=1e6, most_loaded=1.1)
        for load, high in ((0.3, 0.2), (0.5, 0.9), (0.7, 4.0))
    ]
    assert best_loads(found) == {("kind", "policy"): 0.5}
    assert best_loads(found[2:]) == {("kind", "policy"): 0.0}
    draw(tmp_path / "plot.svg", found)
    assert (tmp_path / "plot.svg").read_text(encoding="utf-8").startswith("<?xml")
