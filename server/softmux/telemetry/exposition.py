"""The declared metrics as Prometheus reads them: what the API observed, and what the worker sent last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from softmux.telemetry.collectors import (
    Sum,
    SupervisorCollector,
    TenantCollector,
    TenantShare,
    TokenCollector,
    WorkerCollector,
)
from softmux.telemetry.histogram import TokenHistogram
from softmux.telemetry.labels import BoundedLabels
from softmux.telemetry.metrics import BARE, BY_NAME, METRICS, PREFIX, Metric
from softmux.telemetry.samples import Sample, Samples, summed
from softmux.types import DEFAULT_TENANT
from softmux.worker.messages import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
__all__ = ["BARE", "CONTENT_TYPE", "Metrics", "TenantShare"]
_BETWEEN = "inter_token_latency_seconds"


class Metrics:
    """One API process's metrics. `stats` gives the worker's latest numbers; `restarts`, `deaths` (by cause),
    `quarantined` (by what) and how many are `up`, of how many, are its supervisors'; `registry` says whether that is
    within reach, and how many tasks it has; `tenants` which have weights or limits. So many `tasks`, and as many
    tenants, have their own labels.

    `counts` is what this process observed; `render` adds what the others did, so that any of them answers for all.
    """

    def __init__(
        self,
        stats: Callable[[], Stats | None],
        *,
        restarts: Callable[[], int] = lambda: 0,
        deaths: Callable[[], Mapping[str, int]] = dict,
        quarantined: Callable[[], Mapping[str, int]] = dict,
        up: Callable[[], tuple[int, int]] = lambda: (1, 1),
        registry: Callable[[], tuple[bool, int]] = lambda: (True, 0),
        tenants: Callable[[], Iterable[TenantShare]] = tuple,
        tasks: int = 64,
    ) -> None:
        self._registry = CollectorRegistry()
        self._labels = BoundedLabels(tasks)
        self._tenants = BoundedLabels(tasks)
        self._between = TokenHistogram(BY_NAME[_BETWEEN].buckets)
        self._registry.register(TokenCollector(BY_NAME[_BETWEEN], self._between))
        self._own: dict[str, Any] = {m.name: self._made(m) for m in METRICS if m.source == "api" and m.name != _BETWEEN}
        self._first = self._own["time_to_first_token_seconds"]
        self.between_tokens = self._between.observe
        self.tokens_came = self._between.observe_since
        self._worker = CollectorRegistry()
        self._worker.register(SupervisorCollector(restarts, deaths, quarantined, up, registry))
        self._worker.register(TenantCollector(tenants, stats, tasks))
        self._worker.register(WorkerCollector(stats))

    def _made(self, metric: Metric) -> Any:
        name, labels = PREFIX + metric.name, metric.labels
        match metric.kind:
            case "counter":
                counter = Counter(name, metric.help, labels, registry=self._registry)
                for values in metric.known:
                    counter.labels(*values)
                return counter
            case "gauge":
                return Gauge(name, metric.help, labels, registry=self._registry)
            case "histogram":
                return Histogram(name, metric.help, labels, registry=self._registry, buckets=metric.buckets)

    def counts(self) -> Samples:
        """What this process has observed since it began."""
        return tuple(
            Sample(sample.name, tuple(sample.labels.items()), float(sample.value))
            for family in self._registry.collect()
            for sample in family.samples
            if not sample.name.endswith("_created")
        )

    def render(self, others: Samples = ()) -> bytes:
        """Everything as text; `others` are the `counts` of the server's other processes, summed."""
        both = CollectorRegistry()
        both.register(Sum(self._registry, summed((self.counts(), others))))
        return generate_latest(both) + generate_latest(self._worker)

    # --- observations of the API -------------------------------------------------------------------------------------

    def task_label(self, tenant: str, task: str | None) -> str:
        """The bounded label of a task; tasks of other tenants than the default one carry the tenant's name,
        and tasks shared by another tenant both names."""
        if task is None:
            return BARE
        return self._labels.label(task if tenant == DEFAULT_TENANT and "/" not in task else f"{tenant}/{task}")

    def first_token(self, seconds: float) -> None:
        self._first.observe(seconds)

    def request(self, task: str, outcome: str, seconds: float) -> None:
        """A generating request ended: `task` is a `task_label`, `outcome` `ok`, `gone`, or an error's code."""
        self._own["requests_total"].labels(task, outcome).inc()
        self._own["e2e_request_latency_seconds"].observe(seconds)

    def tokens(self, task: str, prompt: int, generated: int) -> None:
        self._own["prompt_tokens_total"].labels(task).inc(prompt)
        self._own["generation_tokens_total"].labels(task).inc(generated)
        self._own["request_prompt_tokens"].observe(prompt)
        self._own["request_generation_tokens"].observe(generated)

    def beyond_trained(self, task: str, side: str) -> None:
        """A request had an input `longer` or `shorter` than what its version was trained on."""
        self._own["requests_beyond_trained_lengths_total"].labels(task, side).inc()

    def finished(self, reason: str) -> None:
        self._own["request_success_total"].labels(reason).inc()

    def answered(self, method: str, status: int) -> None:
        known = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD") else "other"
        self._own["http_requests_total"].labels(known, str(status)).inc()

    def refused(self, reason: str) -> None:
        self._own["requests_refused_total"].labels(reason).inc()

    def not_finite(self, model: str) -> None:
        self._own["rows_not_finite_total"].labels(model).inc()

    def upload(self, outcome: str) -> None:
        self._own["adapter_uploads_total"].labels(outcome).inc()

    def limited(self, limit: str, tenant: str) -> None:
        self._own["limit_refusals_total"].labels(limit).inc()
        self._own["tenant_refusals_total"].labels(self._tenants.label(tenant), limit).inc()

    def tenant_used(
        self, tenant: str, *, requests: int, prompt: int, cached: int, completion: int, seconds: float
    ) -> None:
        """What a tenant has used beyond what was told before."""
        label = self._tenants.label(tenant)
        self._own["tenant_requests_total"].labels(label).inc(max(0, requests))
        self._own["tenant_engine_seconds_total"].labels(label).inc(max(0.0, seconds))
        for kind, tokens in (("prompt", prompt), ("cached", cached), ("completion", completion)):
            self._own["tenant_tokens_total"].labels(label, kind).inc(max(0, tokens))

    def flushed(self, outcome: str) -> None:
        self._own["usage_flushes_total"].labels(outcome).inc()

    def drew(self, outcome: str) -> None:
        self._own["limit_draws_total"].labels(outcome).inc()

    def swapped(self, seconds: float) -> None:
        self._own["adapter_swap_seconds"].observe(seconds)
