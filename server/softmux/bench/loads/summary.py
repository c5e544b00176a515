"""Statistics over one run's outcomes, under the names that vLLM's bench gives them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.slo import Slo

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, standard deviation and percentiles of a metric, in milliseconds, over `count` values."""

    count: int
    mean: float
    std: float
    percentiles: Mapping[int, float]

    @classmethod
    def of(cls, seconds: NDArray[np.float64]) -> Distribution | None:
        """None where there is no value."""
        if not seconds.size:
            return None
        values = seconds * 1e3
        cuts = np.percentile(values, PERCENTILES).tolist()
        return cls(values.size, float(values.mean()), float(values.std()), dict(zip(PERCENTILES, cuts, strict=True)))


@dataclass(frozen=True, slots=True)
class Summary:
    """One run. Latencies and throughput are of the requests that ended well; `errors` counts the others by code.

    `latencies`: `ttft` (to the first token), `itl` (between two events of one reply: what a reader sees), `tpot` (mean
    per token after the first, of each request), `e2el` (end to end), `lag` (how late the client sent, where requests
    have times of their own). `client_busy` is the busiest client process's share of a core, None where there is no
    client.
    """

    completed: int
    errors: Mapping[str, int]
    duration: float
    input_tokens: int
    output_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    tokens_per_event: float | None
    request_goodput: float | None
    latencies: Mapping[str, Distribution]
    client_busy: float | None = None

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def flat(self) -> dict[str, float | int | dict[str, int] | None]:
        """As JSON, in vLLM's names: `mean_ttft_ms`, `p99_itl_ms`, `output_throughput`, …"""
        found: dict[str, float | int | dict[str, int] | None] = {
            "duration": self.duration,
            "completed": self.completed,
            "failed": self.failed,
            "errors": dict(self.errors),
            "total_input_tokens": self.input_tokens,
            "total_output_tokens": self.output_tokens,
            "request_throughput": self.request_throughput,
            "request_goodput": self.request_goodput,
            "output_throughput": self.output_throughput,
            "total_token_throughput": self.total_token_throughput,
            "tokens_per_event": self.tokens_per_event,
            "client_busy": self.client_busy,
        }
        for name, values in self.latencies.items():
            found |= {f"mean_{name}_ms": values.mean, f"std_{name}_ms": values.std}
            found[f"median_{name}_ms"] = values.percentiles[50]
            found |= {f"p{cut}_{name}_ms": value for cut, value in values.percentiles.items()}
        return found


def summarize(outcomes: Sequence[Outcome], *, slo: Slo | None = None, client_busy: float | None = None) -> Summary:
    """The run's figures. It lasts from its start (time 0) to the last outcome's end."""
    well = [outcome for outcome in outcomes if outcome.error is None]
    duration = max((outcome.ended for outcome in outcomes), default=0.0)
    rate = 1.0 / duration if duration > 0 else 0.0
    prompt, new = sum(outcome.prompt_tokens for outcome in well), sum(outcome.tokens for outcome in well)
    events = sum(len(outcome.events) for outcome in well)
    good = None if slo is None else sum(slo.kept(outcome) for outcome in outcomes) * rate
    return Summary(
        completed=len(well),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        duration=duration,
        input_tokens=prompt,
        output_tokens=new,
        request_throughput=len(well) * rate,
        output_throughput=new * rate,
        total_token_throughput=(prompt + new) * rate,
        tokens_per_event=new / events if events else None,
        request_goodput=good,
        latencies={name: found for name, seconds in metrics(well).items() if (found := Distribution.of(seconds))},
        client_busy=client_busy,
    )


def metrics(outcomes: Iterable[Outcome]) -> dict[str, NDArray[np.float64]]:
    """Every value of each latency metric, in seconds."""
    outcomes = list(outcomes)
    gaps = [np.diff(np.frombuffer(outcome.events)) for outcome in outcomes if len(outcome.events) > 1]
    lags = [outcome.sent - outcome.due for outcome in outcomes]
    paced = any(outcome.due for outcome in outcomes)
    return {
        "ttft": _known(outcome.ttft for outcome in outcomes),
        "itl": np.concatenate(gaps) if gaps else np.empty(0),
        "tpot": _known(outcome.tpot for outcome in outcomes),
        "e2el": _known(outcome.e2el for outcome in outcomes),
        "lag": np.array(lags if paced else []),
    }


def _known(values: Iterable[float | None]) -> NDArray[np.float64]:
    return np.array([value for value in values if value is not None], dtype=np.float64)
