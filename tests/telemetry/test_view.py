"""Figures from two readings of the metrics."""

from __future__ import annotations

import pytest

from softmux.telemetry.view import Between, Reading, figures


def reading(at: float, text: str) -> Reading:
    return Reading.parse(text, at)


def test_rates_are_of_what_was_between_and_never_negative() -> None:
    old = reading(10, 'a_total{task="x",o="ok"} 5\na_total{task="y",o="ok"} 5\n')
    new = reading(12, 'a_total{task="x",o="ok"} 11\na_total{task="x",o="bad"} 2\na_total{task="y",o="ok"} 1\n')
    between = Between(old, new)
    assert between.rate("a_total", task="x") == 4
    assert between.rates("a_total", "task") == {"x": 4, "y": 0}
    assert between.rate("none_total") == 0


def test_quantiles_lie_within_their_bucket() -> None:
    lines = '{}_bucket{{le="0.1"}} {}\n{}_bucket{{le="0.2"}} {}\n{}_bucket{{le="+Inf"}} {}\n{}_count {}\n{}_sum {}\n'
    old = reading(0, lines.format("h", 0, "h", 0, "h", 0, "h", 0, "h", 0))
    new = reading(1, lines.format("h", 50, "h", 100, "h", 100, "h", 100, "h", 12))
    between = Between(old, new)
    assert between.quantile("h", 0.5) == pytest.approx(0.1)
    assert between.quantile("h", 0.75) == pytest.approx(0.15)
    assert between.mean("h") == pytest.approx(0.12)
    assert Between(new, new).quantile("h", 0.5) is None
    assert Between(new, new).mean("h") is None
    slow = reading(1, lines.format("h", 0, "h", 0, "h", 4, "h", 4, "h", 9))
    assert Between(old, slow).quantile("h", 0.95) == pytest.approx(0.2)


def test_an_idle_server_has_figures_too() -> None:
    told = figures(reading(0, ""), reading(1, ""))
    assert (told["requests"]["per_second"], told["batch"]["mix"], told["cache"]["hit_share"]) == (0, {}, None)
    assert told["latency"]["first_token"] == {"p50": None, "p95": None}
