from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from softmux.telemetry.exposition import Metrics
from softmux.telemetry.samples import Sample, summed


def test_series_of_several_processes_are_added_up_each_by_its_labels() -> None:
    one = (Sample("a_total", (("task", "x"),), 1.0), Sample("b_sum", (), 0.5))
    other = (Sample("a_total", (("task", "x"),), 2.0), Sample("a_total", (("task", "y"),), 4.0))
    assert set(summed((one, other))) == {
        Sample("a_total", (("task", "x"),), 3.0),
        Sample("a_total", (("task", "y"),), 4.0),
        Sample("b_sum", (), 0.5),
    }
    assert summed(()) == ()


def test_one_process_answers_for_all() -> None:
    processes = [Metrics(lambda: None) for _ in range(3)]
    for number, metrics in enumerate(processes):
        metrics.request(metrics.task_label("default", f"task-{number}"), "ok", 0.01 * 10**number)
        metrics.request(metrics.task_label("default", "everyones"), "ok", 0.3)
        metrics.between_tokens(0.002)
    for asked in processes:
        others = summed(metrics.counts() for metrics in processes if metrics is not asked)
        families = text_string_to_metric_families(asked.render(others).decode())
        found = {(s.name, s.labels.get("task"), s.labels.get("le")): s.value for f in families for s in f.samples}
        assert found["softmux_requests_total", "everyones", None] == 3
        assert [found["softmux_requests_total", f"task-{number}", None] for number in range(3)] == [1, 1, 1]
        assert found["softmux_e2e_request_latency_seconds_count", None, None] == 6
        assert found["softmux_e2e_request_latency_seconds_bucket", None, "0.05"] == 1
        assert found["softmux_inter_token_latency_seconds_count", None, None] == 3
        assert round(found["softmux_inter_token_latency_seconds_sum", None, None], 6) == 0.006
