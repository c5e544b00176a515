"""Statistics of a run, against values worked out by hand."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.slo import parse_slo
from softmux.bench.loads.summary import Distribution, summarize
from softmux.errors import InvalidRequest

STREAMED = Outcome(0.0, 0.1, 0.5, array("d", [0.2, 0.3, 0.5]), prompt_tokens=10, tokens=5)
QUICK = Outcome(0.5, 0.5, 0.7, array("d", [0.6, 0.7]), prompt_tokens=20, tokens=2)
ONE = Outcome(1.0, 1.0, 1.05, array("d", [1.05]), prompt_tokens=1, tokens=1)
FAILED = Outcome(1.0, 1.0, 2.0, error="503 overloaded")


def test_a_runs_figures() -> None:
    summary = summarize([STREAMED, QUICK, ONE, FAILED])
    assert (summary.completed, summary.failed, summary.errors) == (3, 1, {"503 overloaded": 1})
    assert summary.duration == 2.0
    assert (summary.input_tokens, summary.output_tokens) == (31, 8)
    assert (summary.request_throughput, summary.output_throughput) == (1.5, 4.0)
    assert summary.total_token_throughput == pytest.approx(39 / 2)
    assert summary.tokens_per_event == pytest.approx(8 / 6)
    latencies = summary.latencies
    assert latencies["ttft"].mean == pytest.approx((100 + 100 + 50) / 3)
    assert latencies["itl"].count == 3
    assert latencies["itl"].mean == pytest.approx((100 + 200 + 100) / 3)
    assert latencies["tpot"].mean == pytest.approx((300 / 4 + 100) / 2)
    assert latencies["e2el"].percentiles[50] == pytest.approx(200)
    assert latencies["lag"].mean == pytest.approx(100 / 3)
    assert summary.request_goodput is None


def test_names_are_vllms() -> None:
    flat = summarize([STREAMED, QUICK]).flat()
    assert {"completed", "output_throughput", "total_token_throughput", "request_goodput", "mean_ttft_ms"} <= set(flat)
    assert flat["median_itl_ms"] == flat["p50_itl_ms"]
    assert flat["p99_e2el_ms"] == pytest.approx(398, abs=0.1)


def test_replies_that_come_whole_have_no_first_token() -> None:
    summary = summarize([Outcome(0.0, 0.0, 0.5, prompt_tokens=3, tokens=4)])
    assert set(summary.latencies) == {"e2el"}
    assert summary.tokens_per_event is None


def test_a_run_without_a_good_request_has_figures_too() -> None:
    summary = summarize([FAILED], slo=parse_slo(["ttft:1"]))
    assert (summary.completed, summary.output_throughput, summary.request_goodput) == (0, 0.0, 0.0)
    assert summarize([]).duration == 0.0


def test_percentiles_are_those_of_numpy_over_milliseconds() -> None:
    seconds = np.random.default_rng(0).exponential(1.0, 999)
    found = Distribution.of(seconds)
    assert found is not None
    ordered = np.sort(seconds) * 1e3
    assert found.percentiles[50] == pytest.approx(ordered[499])
    assert found.percentiles[99] == pytest.approx(np.quantile(ordered, 0.99))
    assert found.std == pytest.approx(ordered.std())


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["ttft:101"], 3),
        (["ttft:60"], 1),
        (["tpot:80"], 2),
        (["tpot:80", "ttft:60"], 1),
        (["e2el:250"], 2),
        (["e2el:1"], 0),
    ],
)
def test_goodput_counts_requests_that_keep_to_every_limit(words: list[str], kept: int) -> None:
    summary = summarize([STREAMED, QUICK, ONE, FAILED], slo=parse_slo(words))
    assert summary.request_goodput == kept / 2.0


@pytest.mark.parametrize("word", ["ttft", "ttft:", "ttft:x", "ttft:0", "itl:3", "p99:2"])
def test_an_objective_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(InvalidRequest, match="ttft:200"):
        parse_slo([word])
    assert parse_slo([]) is None
