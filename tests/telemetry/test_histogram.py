"""The histogram that every token is counted in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.telemetry.histogram import TokenHistogram


@given(start=st.floats(0, 1e6), gaps=st.lists(st.sampled_from((0.0, 0.25, 0.5, 1.0, 1.5, 4.0)), max_size=60))
def test_a_run_of_tokens_counts_as_its_tokens_one_by_one(start: float, gaps: list[float]) -> None:
    run, each = TokenHistogram((0.25, 0.5, 1.0)), TokenHistogram((0.25, 0.5, 1.0))
    start = float(int(start))  # so that no gap is rounded
    moments, now = [], start
    for gap in gaps:
        now += gap
        moments.append(now)
        each.observe(gap)
    run.observe_since(start, moments)
    assert run.cumulative() == each.cumulative()
    assert run.sum == pytest.approx(each.sum)
