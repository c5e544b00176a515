"""Random load on a model whose pool, tiers and tables are too small for it: the books add up, and nothing is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from softmux.bench.services.memory import Growth, Sample
from softmux.bench.services.soak import Asked, Soak, main
from softmux.errors import InvalidRequest, Overloaded
from softmux.types import DEFAULT_TENANT, SamplingParams

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


def test_one_that_another_tenant_displaces_from_a_full_queue_is_counted(tmp_path: Path) -> None:
    soak = Soak(device="cpu", scratch=tmp_path)
    engine, most = soak.engine, 2 * 64
    for number, tenant in enumerate([DEFAULT_TENANT] * most + ["other"]):
        try:
            engine.add(
                str(number), (5, 6), SamplingParams(max_tokens=2), root=engine.key(tenant, None), now=0.0, client=b""
            )
            soak.asked[str(number)] = Asked(None)
        except Overloaded:
            assert tenant == DEFAULT_TENANT
    soak.rest()
    assert soak.counts["displaced from a full queue by a tenant with less in it"] == 1
    soak.close()


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("device", DEVICES)
def test_two_hundred_thousand_steps_leave_nothing_behind(device: str, tmp_path: Path) -> None:
    soak = Soak(device=device, scratch=tmp_path)
    soak.run(200_000)
    print(soak.told())
    assert soak.growth.beyond() == []
    soak.close()


def test_growth_is_told_from_a_warm_up_and_from_noise() -> None:
    def samples(*values: int) -> Growth:
        return Growth([Sample(1000 * i, value, 0, 0, 0) for i, value in enumerate(values)])

    assert samples(10, 40, 50, 50, 50, 50).slope("rss") == 0
    assert samples(10, 40, 50, 52, 54, 56).slope("rss") == pytest.approx(2)
    assert abs(samples(0, 0, 50, 51, 50, 51, 50, 51, 50).slope("rss")) < 0.2


def test_growth_is_judged_only_where_a_run_was_long_enough() -> None:
    def run(steps: int, count: int, each: int) -> Growth:
        return Growth([Sample(steps * i // count, 5 << 20, 100 + each * i, 9, 0) for i in range(1, count + 1)])

    assert run(200_000, 40, 0).beyond() == []
    assert run(200_000, 40, 49).beyond() == []
    assert run(200_000, 40, 50).beyond() == ["objects grows by 10.0 per 1,000 steps, where 10 are allowed"]
    assert run(1_000, 40, 50).beyond() == []
    assert "1,000 steps are too few to tell growth from warming up" in run(1_000, 40, 50).told()
    assert "too few" not in run(200_000, 40, 50).told()
    for count in range(4):
        assert run(200_000, count, 50_000).beyond() == []
        assert run(200_000, count, 50_000).told() == f"memory: {count} are too few samples to tell whether it grows"


def test_by_the_clock_samples_are_spread_over_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soak = Soak(scratch=tmp_path)
    clock = [0.0]
    monkeypatch.setattr("softmux.bench.services.soak.time.perf_counter", lambda: clock[0])

    def second() -> None:
        clock[0] += 1.0
        soak.engine.steps += 1

    monkeypatch.setattr(Sample, "taken", lambda step: Sample(step, 0, 0, 0, 0))
    monkeypatch.setattr(soak, "_disturb", lambda turn: None)
    monkeypatch.setattr(soak, "_step", second)
    soak.run(1_000_000, samples=4, until=102.0)
    assert [sample.step for sample in soak.growth.samples] == [26, 51, 77, 102]
    soak.close()


@pytest.mark.parametrize("words", [["--seconds", "0"], ["--seconds", "nan"], ["--steps", "0"]])
def test_a_soak_of_no_time_is_refused(words: list[str]) -> None:
    with pytest.raises(InvalidRequest, match="--steps is at least 1, and --seconds above 0"):
        main(words)


def test_a_soak_ends_with_1_where_memory_grows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grown(soak: Soak, steps: int, **_: object) -> None:
        soak.growth.samples += [Sample(10_000 * i, i << 20, 0, 0, 0) for i in range(20)]

    monkeypatch.setattr(Soak, "run", grown)
    assert main(["--steps", "190000"]) == 1
    assert "rss grows by 104,857.6 per 1,000 steps, where 65,536 are allowed" in capsys.readouterr().out
