"""Arrival processes have the rate, the spread and the shares that were asked for."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.bench.loads.arrivals import Arrivals, at_once, paced_times
from softmux.errors import InvalidRequest


def _draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_are_gamma_distributed_with_the_rate_asked_for(burstiness: float) -> None:
    times = paced_times(20_000, 50.0, _draw(), burstiness=burstiness)
    gaps = np.diff(times, prepend=0.0)
    assert times[-1] == pytest.approx(20_000 / 50.0)
    assert (gaps >= 0).all()
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.05)
    # a gamma distribution's skewness is 2/√shape
    assert (((gaps - gaps.mean()) / gaps.std()) ** 3).mean() == pytest.approx(2 * burstiness**-0.5, rel=0.2)


def test_a_poisson_process_counts_vary_as_much_as_their_mean() -> None:
    counts = np.bincount(paced_times(50_000, 10.0, _draw()).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, rel=0.1)


def test_the_limits_are_all_at_once_and_a_clock() -> None:
    assert not paced_times(5, math.inf, _draw()).any()
    assert paced_times(4, 2.0, _draw(), burstiness=math.inf).tolist() == [0.5, 1.0, 1.5, 2.0]


def test_a_seed_gives_the_same_times_again() -> None:
    first, again, other = (paced_times(100, 5.0, _draw(seed)) for seed in (3, 3, 4))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize(("rate", "burstiness"), [(0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0)])
def test_a_rate_or_burstiness_that_is_none_is_refused(rate: float, burstiness: float) -> None:
    with pytest.raises(InvalidRequest, match="above zero"):
        paced_times(3, rate, _draw(), burstiness=burstiness)


@given(count=st.integers(0, 50), parts=st.integers(1, 6), limit=st.integers(1, 20))
def test_the_shares_of_several_clients_are_the_whole(count: int, parts: int, limit: int) -> None:
    whole = Arrivals(np.arange(float(count)), limit)
    shares = [whole.share(part, parts) for part in range(parts)]
    assert sorted(time for share in shares for time in share.times) == list(range(count))
    assert sum(share.concurrency or 0 for share in shares) == limit


def test_only_times_of_their_own_are_paced() -> None:
    assert not at_once(3, 2).paced
    assert Arrivals(np.array([0.0, 0.5])).paced
