"""Whole loads through the scheduler: right KV for every row, every token once, nothing leaked, nobody left waiting."""

from __future__ import annotations

from collections import Counter

import pytest

from support.simulation import Simulation

SEEDS = 150
NIGHTLY_SEEDS = 10_000
CHUNK = 50
MUST_HAPPEN = (
    "stop", "length", "abort", "aborted", "disconnected", "displaced", "expired", "failed", "felled", "refused",
    "restarted", "shed", "preempted", "step failed", "short of memory", "shared", "evicted",
)  # fmt: skip


def run(seeds: range, depth: int) -> Counter[str]:
    """What happened in them. Raises AssertionError at the first thing that is wrong."""
    happened: Counter[str] = Counter()
    for seed in seeds:
        simulation = Simulation(seed, depth)
        try:
            simulation.run()
        except Exception as error:
            again = f"PYTHONPATH=server:tests python -m support.simulation {seed} {depth}"
            raise AssertionError(f"step {simulation.now} of seed {seed}: {error}; again: {again}") from error
        happened += simulation.happened
        happened["shared"] += simulation.scheduler.prefix_hits
        happened["evicted"] += sum(simulation.engine.dropped.values())
    return happened


@pytest.mark.parametrize("depth", [0, 1])
def test_every_row_reads_its_own_prefix_and_every_sequence_ends(depth: int) -> None:
    happened = run(range(SEEDS), depth)
    assert not [what for what in MUST_HAPPEN if not happened[what]], "the seeds are too easy"


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_night_of_loads(depth: int) -> None:
    run(range(SEEDS, SEEDS + NIGHTLY_SEEDS), depth)
