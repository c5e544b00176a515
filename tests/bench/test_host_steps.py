"""The bench of the host's own work goes through the server's scheduler, runner and wire."""

from __future__ import annotations

from softmux.bench.device.host import PARTS, TEXT_PARTS, measure, measure_texts


def test_every_part_of_a_steady_step_is_timed() -> None:
    times = measure(4, steps=12)
    assert set(times.parts) == set(PARTS)
    assert {len(seconds) for seconds in times.parts.values()} == {11}, "the first step has none before it to collect"
    assert times.microseconds()["sum"] > 0


def test_every_part_of_texts_that_heads_read_is_timed() -> None:
    times = measure_texts(40, passes=3)
    assert set(times.parts) == set(TEXT_PARTS)
    assert {len(seconds) for seconds in times.parts.values()} == {3}, "the first pass copies in what is trained"
    assert 0 < times.least()["sum"] <= times.microseconds()["sum"]
