"""The declared metrics as Prometheus reads them: what the API observed, and what the worker sent last."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from softmux.telemetry.histogram import TokenHistogram
from softmux.telemetry.labels import BoundedLabels
from softmux.telemetry.metrics import BY_NAME, METRICS, PREFIX, Metric
from softmux.telemetry.samples import Sample, Samples, summed
from softmux.types import DEFAULT_TENANT
from softmux.worker.messages import Stats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BARE = "(base)"
"""The label of requests to the bare model: no task can have this name."""
_BETWEEN = "inter_token_latency_seconds"


class Metrics:
    """One API process's metrics. `stats` gives the worker's latest numbers; `restarts`, `deaths` (by cause),
    `quarantined` (by what) and `up` are its supervisor's; `registry` says whether that is within reach, and how many
    tasks it has.

    `counts` is what this process observed; `render` adds what the others did, so that any of them answers for all.
    """

    def __init__(
        self,
        stats: Callable[[], Stats | None],
        *,
        restarts: Callable[[], int] = lambda: 0,
        deaths: Callable[[], Mapping[str, int]] = dict,
        quarantined: Callable[[], Mapping[str, int]] = dict,
        up: Callable[[], bool] = lambda: True,
        registry: Callable[[], tuple[bool, int]] = lambda: (True, 0),
        tasks: int = 64,
    ) -> None:
        self._registry = CollectorRegistry()
        self._labels = BoundedLabels(tasks)
        self._between = TokenHistogram(BY_NAME[_BETWEEN].buckets)
        self._registry.register(_TokenCollector(BY_NAME[_BETWEEN], self._between))
        self._own: dict[str, Any] = {m.name: self._made(m) for m in METRICS if m.source == "api" and m.name != _BETWEEN}
        self._first = self._own["time_to_first_token_seconds"]
        self.between_tokens = self._between.observe
        self._worker = CollectorRegistry()
        self._worker.register(_WorkerCollector(stats, restarts, deaths, quarantined, up, registry))

    def _made(self, metric: Metric) -> Any:
        name, labels = PREFIX + metric.name, metric.labels
        match metric.kind:
            case "counter":
                return Counter(name, metric.help, labels, registry=self._registry)
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
        both.register(_Sum(self._registry, summed((self.counts(), others))))
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

    def finished(self, reason: str) -> None:
        self._own["request_success_total"].labels(reason).inc()

    def answered(self, method: str, status: int) -> None:
        known = method if method in ("GET", "POST", "PUT", "DELETE", "HEAD") else "other"
        self._own["http_requests_total"].labels(known, str(status)).inc()

    def refused(self, reason: str) -> None:
        self._own["requests_refused_total"].labels(reason).inc()

    def not_finite(self, model: str) -> None:
        self._own["rows_not_finite_total"].labels(model).inc()

    def upload(self, outcome: str) -> None:
        self._own["adapter_uploads_total"].labels(outcome).inc()

    def limited(self, limit: str) -> None:
        self._own["limit_refusals_total"].labels(limit).inc()

    def flushed(self, outcome: str) -> None:
        self._own["usage_flushes_total"].labels(outcome).inc()

    def drew(self, outcome: str) -> None:
        self._own["limit_draws_total"].labels(outcome).inc()

    def swapped(self, seconds: float) -> None:
        self._own["adapter_swap_seconds"].observe(seconds)


class _Sum:
    """The families of `registry`, with these samples instead of its own."""

    def __init__(self, registry: CollectorRegistry, samples: Samples) -> None:
        self._registry, self._samples = registry, samples

    def collect(self) -> Iterable[Any]:
        for family in self._registry.collect():
            total = Family(family.name, family.documentation, family.type)
            names = {family.name + suffix for suffix in ("", "_total", "_bucket", "_count", "_sum")}
            for sample in self._samples:
                if sample.name in names:
                    total.add_sample(sample.name, dict(sample.labels), sample.value)
            yield total


class _TokenCollector:
    def __init__(self, metric: Metric, histogram: TokenHistogram) -> None:
        self._metric, self._histogram = metric, histogram

    def collect(self) -> Iterable[Any]:
        name, histogram = PREFIX + self._metric.name, self._histogram
        yield HistogramMetricFamily(name, self._metric.help, histogram.cumulative(), sum_value=histogram.sum)


class _WorkerCollector:
    """Turns the worker's latest `Stats` into families at each scrape. Names that are not declared are left out."""

    def __init__(
        self,
        stats: Callable[[], Stats | None],
        restarts: Callable[[], int],
        deaths: Callable[[], Mapping[str, int]],
        quarantined: Callable[[], Mapping[str, int]],
        up: Callable[[], bool],
        registry: Callable[[], tuple[bool, int]],
    ) -> None:
        self._stats, self._restarts, self._up, self._registry = stats, restarts, up, registry
        self._deaths, self._quarantined = deaths, quarantined

    def collect(self) -> Iterable[Any]:
        restarts = BY_NAME["worker_restarts_total"]
        yield CounterMetricFamily(PREFIX + restarts.name, restarts.help, value=self._restarts())
        died = BY_NAME["worker_deaths_total"]
        deaths = CounterMetricFamily(PREFIX + died.name, died.help, labels=died.labels)
        for cause, count in self._deaths().items():
            deaths.add_metric([cause], count)
        yield deaths
        kept = BY_NAME["quarantined"]
        quarantined = GaugeMetricFamily(PREFIX + kept.name, kept.help, labels=kept.labels)
        for what, count in self._quarantined().items():
            quarantined.add_metric([what], count)
        yield quarantined
        up = BY_NAME["worker_up"]
        yield GaugeMetricFamily(PREFIX + up.name, up.help, value=float(self._up()))
        for name, now in zip(("registry_up", "registry_tasks"), self._registry(), strict=True):
            yield GaugeMetricFamily(PREFIX + name, BY_NAME[name].help, value=float(now))
        stats = self._stats()
        if stats is None:
            return
        for name, value in stats.counters.items():
            if name in BY_NAME:
                yield CounterMetricFamily(PREFIX + name, BY_NAME[name].help, value=value)
        for name, value in stats.gauges.items():
            if name in BY_NAME:
                yield GaugeMetricFamily(PREFIX + name, BY_NAME[name].help, value=value)
        for name, values in stats.labelled.items():
            if name in BY_NAME:
                family = CounterMetricFamily(PREFIX + name, BY_NAME[name].help, labels=BY_NAME[name].labels)
                for label, value in values.items():
                    family.add_metric([label], value)
                yield family
        for name, words in stats.infos.items():
            if name in BY_NAME:
                labels = BY_NAME[name].labels
                said = GaugeMetricFamily(PREFIX + name, BY_NAME[name].help, labels=labels)
                said.add_metric([words.get(label, "") for label in labels], 1.0)
                yield said
        for name, histogram in stats.histograms.items():
            if name in BY_NAME:
                bounds = [*(str(float(bound)) for bound in BY_NAME[name].buckets), "+Inf"]
                buckets = list(zip(bounds, histogram.counts, strict=False))
                yield HistogramMetricFamily(PREFIX + name, BY_NAME[name].help, buckets=buckets, sum_value=histogram.sum)
