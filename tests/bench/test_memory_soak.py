"""Random load on a model whose pool, tiers and tables are too small for it: the books add up, and nothing is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from softmux.bench.memory import Growth, Sample
from softmux.bench.soak import Soak

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_a_short_day_leaves_nothing_behind(device: str, tmp_path: Path) -> None:
    soak = Soak(device=device, scratch=tmp_path, check_every=10)
    soak.run(2_000, until=0.0)
    assert soak.engine.steps == 0, "its time was over"
    soak.run(2_000, samples=6)
    counts, growth = soak.counts, soak.growth
    assert counts["turns with the pool full"] > 20, "the pool was filled to the last slot"
    assert soak.engine.scheduler.preemptions > 0
    assert counts["answers compared"] > 50
    assert counts["aborted"] > 0
    assert counts["adapters replaced"] > 0
    first, last = growth.samples[2], growth.samples[-1]
    requests = counts["requests"] // 2
    assert last.objects - first.objects < requests, f"an object of each request is kept\n{growth.told()}"
    assert last.tensors - first.tensors < 20, growth.told()
    assert last.cuda - first.cuda < 64 << 10, growth.told()
    soak.close()


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("device", DEVICES)
def test_two_hundred_thousand_steps_leave_nothing_behind(device: str, tmp_path: Path) -> None:
    soak = Soak(device=device, scratch=tmp_path)
    soak.run(200_000)
    print(soak.told())
    growth = soak.growth
    assert growth.slope("rss") < 64 << 10, "65 bytes a step"
    assert growth.slope("objects") < 10
    assert growth.slope("tensors") < 1
    assert growth.slope("cuda") < 1 << 10
    soak.close()


def test_growth_is_told_from_a_warm_up_and_from_noise() -> None:
    def samples(*values: int) -> Growth:
        return Growth([Sample(1000 * i, value, 0, 0, 0) for i, value in enumerate(values)])

    assert samples(10, 40, 50, 50, 50, 50).slope("rss") == 0
    assert samples(10, 40, 50, 52, 54, 56).slope("rss") == pytest.approx(2)
    assert abs(samples(0, 0, 50, 51, 50, 51, 50, 51, 50).slope("rss")) < 0.2
