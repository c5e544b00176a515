from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from softmux.telemetry.exposition import BARE, Metrics
from softmux.telemetry.labels import OTHER, BoundedLabels
from softmux.telemetry.metrics import BY_NAME, METRICS, PREFIX, worker_buckets
from softmux.worker.messages import Histogram, Stats

INFO = ("attention", "graphs", "layers", "products")


def test_every_name_is_declared_once_and_is_legal() -> None:
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))


def whole() -> Metrics:
    """Metrics in which everything declared was observed or sent."""
    worker = [metric for metric in METRICS if metric.source == "worker"]
    stats = Stats(
        counters={m.name: 1.0 for m in worker if m.kind == "counter" and not m.labels} | {"unheard_of": 1.0},
        gauges={m.name: 2.0 for m in worker if m.kind == "gauge" and not m.labels},
        infos={m.name: dict.fromkeys(m.labels, "here") for m in worker if m.kind == "gauge" and m.labels},
        histograms={name: Histogram(tuple(range(len(buckets) + 1)), 7.5) for name, buckets in worker_buckets().items()},
        labelled={m.name: {"host": 3.0, "disk": 4.0} for m in worker if m.kind == "counter" and m.labels},
    )
    metrics = Metrics(lambda: stats, restarts=lambda: 5, up=lambda: False, registry=lambda: (False, 7))
    label = metrics.task_label("default", "sentiment")
    metrics.request(label, "ok", 0.3)
    metrics.tokens(label, 10, 20)
    metrics.finished("stop")
    metrics.first_token(0.1)
    metrics.between_tokens(0.01)
    metrics.answered("BREW", 418)
    metrics.upload("created")
    metrics.swapped(0.2)
    return metrics


def test_a_scrape_holds_every_declared_metric_and_no_other() -> None:
    families = list(text_string_to_metric_families(whole().render().decode()))
    shown = {family.name for family in families if not family.name.endswith("_created")}
    assert shown == {PREFIX + m.name.removesuffix("_total") for m in METRICS}
    samples = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}
    assert samples["softmux_worker_restarts_total", ()] == 5
    assert samples["softmux_worker_up", ()] == 0
    assert samples["softmux_registry_up", ()] == 0
    assert samples["softmux_registry_tasks", ()] == 7
    assert samples["softmux_adapter_loads_total", (("tier", "disk"),)] == 4
    assert samples["softmux_fast_paths_info", tuple((label, "here") for label in INFO)] == 1
    assert samples["softmux_batch_rows_bucket", (("le", "1.0"),)] == 0
    assert samples["softmux_batch_rows_bucket", (("le", "+Inf"),)] == samples["softmux_batch_rows_count", ()] == 11
    assert samples["softmux_batch_rows_sum", ()] == 7.5
    assert samples["softmux_requests_total", (("outcome", "ok"), ("task", "sentiment"))] == 1
    assert samples["softmux_http_requests_total", (("method", "other"), ("status", "418"))] == 1


def test_without_a_worker_the_apis_own_metrics_are_there() -> None:
    text = Metrics(lambda: None).render().decode()
    assert "softmux_worker_up 1.0" in text
    assert "engine_steps" not in text


@pytest.mark.parametrize("limit", [2, 8, 64])
def test_however_many_tasks_there_are_the_labels_are_bounded(limit: int) -> None:
    labels = BoundedLabels(limit)
    given = {labels.label(f"task-{i % 5000}") for i in range(20_000)}
    assert len(given) <= limit + 1


def test_a_busy_task_that_came_late_gets_its_own_label_and_keeps_it() -> None:
    labels = BoundedLabels(8)
    for i in range(1000):
        labels.label(f"once-{i}")
    shown = [labels.label("busy") for _ in range(300)]
    assert shown[0] == OTHER
    assert shown[-1] == "busy"
    first = shown.index("busy")
    assert set(shown[first:]) == {"busy"}
    for i in range(1000):
        labels.label(f"later-{i}")
    assert labels.label("busy") == "busy"


def test_tasks_of_tenants_and_the_bare_model_are_told_apart() -> None:
    metrics = Metrics(lambda: None)
    assert metrics.task_label("default", "a") == "a"
    assert metrics.task_label("acme", "a") == "acme/a"
    assert metrics.task_label("acme", None) == BARE
