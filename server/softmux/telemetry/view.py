"""What a server does now, as figures: the difference of two readings of its `/metrics`."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of `/metrics`, at a time in seconds."""

    at: float
    series: dict[str, dict[tuple[tuple[str, str], ...], float]]

    @classmethod
    def parse(cls, text: str, at: float) -> Reading:
        """Raises ValueError for what is not Prometheus' text format."""
        from prometheus_client.parser import text_string_to_metric_families

        series: dict[str, dict[tuple[tuple[str, str], ...], float]] = defaultdict(dict)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                series[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
        return cls(at, dict(series))

    def sum(self, name: str, **labels: str) -> float:
        """Over all series of the name that have these labels; 0 where there are none."""
        wanted = labels.items()
        return sum(value for key, value in self.series.get(name, {}).items() if wanted <= dict(key).items())

    def by(self, name: str, label: str) -> dict[str, float]:
        """The sums by a label's values."""
        found: dict[str, float] = defaultdict(float)
        for key, value in self.series.get(name, {}).items():
            found[dict(key).get(label, "")] += value
        return found

    def info(self, name: str) -> dict[str, str]:
        """The labels of a series that is there to tell them."""
        return dict(next(iter(self.series.get(name, {})), ()))


class Between:
    """What was between two readings of one server. Counters of one that began anew count from 0."""

    def __init__(self, old: Reading, new: Reading) -> None:
        self.old, self.new = old, new
        self.seconds = max(1e-9, new.at - old.at)

    def rate(self, name: str, **labels: str) -> float:
        return max(0.0, self.new.sum(name, **labels) - self.old.sum(name, **labels)) / self.seconds

    def rates(self, name: str, label: str) -> dict[str, float]:
        before = self.old.by(name, label)
        return {
            value: max(0.0, now - before.get(value, 0.0)) / self.seconds
            for value, now in self.new.by(name, label).items()
        }

    def mean(self, name: str) -> float | None:
        """Of what a histogram observed; None where that was nothing."""
        count = self.rate(f"{name}_count")
        return self.rate(f"{name}_sum") / count if count else None

    def quantile(self, name: str, share: float) -> float | None:
        """Of what a histogram observed, interpolated within its bucket; None where that was nothing."""
        found = self.rates(f"{name}_bucket", "le")
        buckets = sorted((math.inf if bound == "+Inf" else float(bound), count) for bound, count in found.items())
        if not buckets or not buckets[-1][1]:
            return None
        rank = share * buckets[-1][1]
        below, low = 0.0, 0.0
        for bound, count in buckets:
            if count >= rank:
                if math.isinf(bound):
                    return low
                return low + (bound - low) * ((rank - below) / (count - below) if count > below else 1.0)
            below, low = count, bound
        return low


def figures(old: Reading, new: Reading) -> dict[str, Any]:
    """Rates are a second's, times in seconds, shares from 0 to 1; None is what was not observed between."""
    between = Between(old, new)
    looked, hit = between.rate("softmux_prefix_cache_queries_total"), between.rate("softmux_prefix_cache_hits_total")
    rows = between.rates("softmux_engine_rows_total", "method")
    all_rows = sum(rows.values())
    outcomes = between.rates("softmux_requests_total", "outcome")
    return {
        "server": new.info("softmux_server_info"),
        "seconds": round(between.seconds, 3),
        "up": bool(new.sum("softmux_worker_up")),
        "requests": {
            "per_second": sum(outcomes.values()),
            "failed_per_second": sum(rate for outcome, rate in outcomes.items() if outcome not in ("ok", "gone")),
            "running": int(new.sum("softmux_num_requests_running")),
            "waiting": int(new.sum("softmux_num_requests_waiting")),
        },
        "tokens": {
            "generated_per_second": between.rate("softmux_engine_generated_tokens_total"),
            "computed_per_second": between.rate("softmux_engine_step_tokens_total"),
        },
        "latency": {
            name: {"p50": between.quantile(metric, 0.5), "p95": between.quantile(metric, 0.95)}
            for name, metric in (
                ("first_token", "softmux_time_to_first_token_seconds"),
                ("between_tokens", "softmux_inter_token_latency_seconds"),
                ("whole", "softmux_e2e_request_latency_seconds"),
                ("queue", "softmux_request_queue_time_seconds"),
            )
        },
        "batch": {
            "steps_per_second": between.rate("softmux_engine_steps_total"),
            "step_seconds": between.mean("softmux_step_seconds"),
            "rows": between.mean("softmux_batch_rows"),
            "adapters": between.mean("softmux_batch_adapters"),
            "mix": {method: rate / all_rows for method, rate in rows.items() if rate},
        },
        "cache": {
            "hit_share": hit / looked if looked else None,
            "kv_share": new.sum("softmux_kv_cache_usage_perc"),
            "kv_tokens": int(new.sum("softmux_kv_cache_capacity_tokens")),
            "adapters_in_memory": int(new.sum("softmux_adapters_in_host_memory")),
            "lora_slots": [int(new.sum(f"softmux_lora_slots_{what}")) for what in ("in_use", "capacity")],
        },
        "tasks": _busiest(between, "task", "softmux_requests_total", "softmux_generation_tokens_total"),
        "tenants": _busiest(between, "tenant", "softmux_tenant_requests_total", "softmux_tenant_tokens_total"),
    }


def _busiest(between: Between, label: str, requests: str, tokens: str) -> list[dict[str, Any]]:
    """All that had requests or tokens, those with most tokens first."""
    asked, made = between.rates(requests, label), between.rates(tokens, label)
    names = {name for name, rate in (*asked.items(), *made.items()) if rate}
    rows = [
        {label: name, "requests_per_second": asked.get(name, 0.0), "tokens_per_second": made.get(name, 0.0)}
        for name in names
    ]
    return sorted(rows, key=lambda row: (-row["tokens_per_second"], row[label]))
