from __future__ import annotations

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from softmux.telemetry.exposition import BARE, Metrics, TenantShare
from softmux.telemetry.labels import OTHER, BoundedLabels
from softmux.telemetry.metrics import BY_NAME, METRICS, PREFIX, worker_buckets
from softmux.worker.messages import Histogram, Stats

INFO = ("attention", "graphs", "layers", "products")
SERVER = ("version", "model", "dtype", "device")


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
    metrics = Metrics(lambda: stats, restarts=lambda: 5, up=lambda: (0, 2), registry=lambda: (False, 7))
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
    assert samples["softmux_server_info", tuple((label, "here") for label in sorted(SERVER))] == 1


def test_what_can_happen_is_counted_from_the_start() -> None:
    families = list(text_string_to_metric_families(Metrics(lambda: None).render().decode()))
    shown = {(s.name, *(s.labels[label] for label in sorted(s.labels))): s.value for f in families for s in f.samples}
    for metric in METRICS:
        if metric.source != "worker":
            for values in metric.known:
                labels = [value for _, value in sorted(zip(metric.labels, values, strict=True))]
                assert shown[PREFIX + metric.name, *labels] == 0, metric.name


def test_the_worker_need_not_send_what_has_not_happened() -> None:
    stats = Stats(counters={}, gauges={}, labelled={"engine_rows_total": {"lora": 3.0}})
    text = Metrics(lambda: stats).render().decode()
    assert 'softmux_engine_rows_total{method="lora"} 3.0' in text
    assert 'softmux_engine_rows_total{method="base"} 0.0' in text


def test_an_info_may_say_when_it_was_so() -> None:
    words = {"max_lora": "8", "running_lora_adapters": "a,b", "waiting_lora_adapters": ""}
    stats = Stats(counters={}, gauges={"lora_requests_info": 1.75e9}, infos={"lora_requests_info": words})
    families = text_string_to_metric_families(Metrics(lambda: stats).render().decode())
    (sample,) = [s for f in families for s in f.samples if s.name == "softmux_lora_requests_info"]
    assert (sample.labels, sample.value) == (words, 1.75e9)


def test_tenants_are_told_apart_up_to_a_bound_and_their_limits_told() -> None:
    stats = Stats(counters={}, gauges={}, queues={f"t{number}": (float(number), 1.0) for number in range(9)})
    shares = [TenantShare(f"t{number}", 2.0, {"adapters": number}) for number in range(9)]
    metrics = Metrics(lambda: stats, tenants=lambda: shares, tasks=4)
    for number in range(9):
        metrics.tenant_used(f"t{number}", requests=1, prompt=2, cached=1, completion=3, seconds=0.5)
        metrics.limited("adapters", f"t{number}")
    metrics.tenant_used("t0", requests=0, prompt=-1, cached=0, completion=-2, seconds=0.0)  # a stop string cut it
    families = text_string_to_metric_families(metrics.render().decode())
    found = {
        (s.name, tuple(s.labels[name] for name in ("tenant", "kind", "limit") if name in s.labels)): s.value
        for f in families
        for s in f.samples
    }
    assert found["softmux_tenant_requests_total", ("t0",)] == 1
    assert found["softmux_tenant_tokens_total", ("t0", "completion")] == 3
    assert found["softmux_limit_refusals_total", ("adapters",)] == 9
    of_tenants = {labels[0] for name, labels in found if name == "softmux_tenant_requests_total"}
    assert of_tenants == {"default", "t0", "t1", "other"}
    assert sum(v for (name, _), v in found.items() if name == "softmux_tenant_engine_seconds_total") == 4.5
    assert {labels for name, labels in found if name == "softmux_tenant_limit"} == {
        (f"t{number}", "adapters") for number in range(4)
    }
    assert found["softmux_tenant_weight", ("t3",)] == 2
    assert {labels[0] for name, labels in found if name == "softmux_tenant_queue_cost"} == {
        "default", "t5", "t6", "t7", "t8",
    }  # fmt: skip


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
