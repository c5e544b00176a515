"""What is not counted in this process, as Prometheus' families: the worker's numbers, a supervisor's, tenants'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from softmux.telemetry.histogram import TokenHistogram
from softmux.telemetry.metrics import BY_NAME, PREFIX, Metric
from softmux.telemetry.samples import Samples
from softmux.worker.messages import Stats


@dataclass(frozen=True, slots=True)
class TenantShare:
    """What a tenant may use: its weight, and its limits by name."""

    name: str
    weight: float
    limits: Mapping[str, int]


class Sum:
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


class TokenCollector:
    def __init__(self, metric: Metric, histogram: TokenHistogram) -> None:
        self._metric, self._histogram = metric, histogram

    def collect(self) -> Iterable[Any]:
        name, histogram = PREFIX + self._metric.name, self._histogram
        yield HistogramMetricFamily(name, self._metric.help, histogram.cumulative(), sum_value=histogram.sum)


class TenantCollector:
    """The weights and limits of the first `most` tenants by name that have any, and what waits of the busiest."""

    def __init__(
        self, tenants: Callable[[], Iterable[TenantShare]], stats: Callable[[], Stats | None], most: int
    ) -> None:
        self._tenants, self._stats, self._most = tenants, stats, most

    def collect(self) -> Iterable[Any]:
        limits, weights = _gauge("tenant_limit"), _gauge("tenant_weight")
        for tenant in sorted(self._tenants(), key=lambda tenant: tenant.name)[: self._most]:
            weights.add_metric([tenant.name], tenant.weight)
            for limit, value in tenant.limits.items():
                limits.add_metric([tenant.name, limit], value)
        yield limits
        yield weights
        stats = self._stats()
        costs = {name: cost for name, (cost, _) in stats.queues.items()} if stats is not None else {}
        waiting = _gauge("tenant_queue_cost")
        busiest = sorted(costs, key=lambda name: -costs[name])[: self._most]
        for name, cost in _with_known(BY_NAME["tenant_queue_cost"], {name: costs[name] for name in busiest}).items():
            waiting.add_metric([name], cost)
        yield waiting


class SupervisorCollector:
    """What an API process knows of the worker's life and of the registry."""

    def __init__(
        self,
        restarts: Callable[[], int],
        deaths: Callable[[], Mapping[str, int]],
        quarantined: Callable[[], Mapping[str, int]],
        up: Callable[[], tuple[int, int]],
        registry: Callable[[], tuple[bool, int]],
    ) -> None:
        self._restarts, self._deaths, self._quarantined = restarts, deaths, quarantined
        self._up, self._registry = up, registry

    def collect(self) -> Iterable[Any]:
        restarts = BY_NAME["worker_restarts_total"]
        yield CounterMetricFamily(PREFIX + restarts.name, restarts.help, value=self._restarts())
        yield _counter("worker_deaths_total", self._deaths())
        quarantined = _gauge("quarantined")
        for what, count in _with_known(BY_NAME["quarantined"], self._quarantined()).items():
            quarantined.add_metric([what], count)
        yield quarantined
        said = (*self._up(), *self._registry())
        for name, now in zip(("worker_up", "workers", "registry_up", "registry_tasks"), said, strict=True):
            yield GaugeMetricFamily(PREFIX + name, BY_NAME[name].help, value=float(now))


class WorkerCollector:
    """Turns the worker's latest `Stats` into families at each scrape. Names that are not declared are left out."""

    def __init__(self, stats: Callable[[], Stats | None]) -> None:
        self._stats = stats

    def collect(self) -> Iterable[Any]:
        stats = self._stats()
        if stats is None:
            return
        for name, value in stats.counters.items():
            if name in BY_NAME:
                yield CounterMetricFamily(PREFIX + name, BY_NAME[name].help, value=value)
        for name, value in stats.gauges.items():
            if name in BY_NAME and name not in stats.infos:
                yield GaugeMetricFamily(PREFIX + name, BY_NAME[name].help, value=value)
        for name, values in stats.labelled.items():
            if name in BY_NAME:
                yield _counter(name, values)
        yield from self._infos(stats)
        for name, histogram in stats.histograms.items():
            if name in BY_NAME:
                bounds = [*(str(float(bound)) for bound in BY_NAME[name].buckets), "+Inf"]
                buckets = list(zip(bounds, histogram.counts, strict=False))
                yield HistogramMetricFamily(PREFIX + name, BY_NAME[name].help, buckets=buckets, sum_value=histogram.sum)

    @staticmethod
    def _infos(stats: Stats) -> Iterator[Any]:
        for name, words in stats.infos.items():
            if name in BY_NAME:
                said = _gauge(name)
                said.add_metric([words.get(label, "") for label in BY_NAME[name].labels], stats.gauges.get(name, 1.0))
                yield said


def _gauge(name: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, BY_NAME[name].help, labels=BY_NAME[name].labels)


def _counter(name: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(PREFIX + name, BY_NAME[name].help, labels=BY_NAME[name].labels)
    for label, value in _with_known(BY_NAME[name], values).items():
        family.add_metric([label], value)
    return family


def _with_known(metric: Metric, values: Mapping[str, float]) -> dict[str, float]:
    return {label: 0.0 for (label,) in metric.known} | dict(values)
