"""Whole loads through the scheduler: right KV for every row, every token once, nothing leaked, nobody left waiting."""

from __future__ import annotations

import pytest

from support.simulation import Simulation

SEEDS = 200
NIGHTLY_SEEDS = 20_000
CHUNK = 50


def run(seeds: range, depth: int) -> list[Simulation]:
    ran = []
    for seed in seeds:
        simulation = Simulation(seed, depth)
        try:
            simulation.run()
        except Exception as error:
            raise AssertionError(f"seed {seed}, pipeline depth {depth}, step {simulation.now}: {error}") from error
        ran.append(simulation)
    return ran


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_row_reads_its_own_prefix_and_every_sequence_ends(first: int, depth: int) -> None:
    ran = run(range(first, first + CHUNK), depth)
    assert sum(s.scheduler.preemptions for s in ran) > 0, "pools are too large to test preemption"
    assert sum(sum(s.engine.dropped.values()) for s in ran) > 0, "pools are too large to test eviction"
    assert sum(s.step_failures for s in ran) > 0
    assert sum(s.scheduler.prefix_hits for s in ran) > 0


@pytest.mark.nightly
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_night_of_loads(depth: int) -> None:
    run(range(SEEDS, SEEDS + NIGHTLY_SEEDS), depth)
