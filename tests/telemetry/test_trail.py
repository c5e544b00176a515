"""What a request's line tells, and tracing where its packages are not there."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from softmux.api.server import RefusedToStart, _listen
from softmux.settings import Settings
from softmux.telemetry import tracing
from softmux.telemetry.trail import Trail, begin, current
from softmux.types import AdapterRef, Output

ADAPTER = AdapterRef("default", "sentiment", 3, "sha256:d", "lora", 0)


def test_a_request_that_never_ran_tells_no_tokens() -> None:
    trail = Trail.of("mine")
    trail.asked = "sentiment@9"
    assert trail.line() == {"request_id": "mine", "task": "sentiment@9"}


def test_the_first_of_several_sequences_says_how_long_it_took() -> None:
    trail = Trail.of(None)
    trail.began, trail.adapter = 100.0, ADAPTER
    trail.runs("gen-1", "base", None, 100.5)
    trail.first(Output(id="b", queue_seconds=0.5, prefill_seconds=0.25, cached_tokens=7), 102.0)
    trail.first(Output(id="a", queue_seconds=0.1, prefill_seconds=0.2), 101.0)
    trail.ended(Output(id="a", finish_reason="stop", preemptions=2), 103.0)
    trail.ended(Output(id="c", finish_reason="length", queue_seconds=2.0), 104.0)
    trail.used(5, 6, 7, cached=4)
    said = trail.line()
    assert (said["queue_ms"], said["prefill_ms"], said["first_token_ms"]) == (100.0, 200.0, 1000.0)
    assert said["finish_reasons"] == [None, "stop", "length"]
    assert (said["prompt_tokens"], said["virtual_tokens"], said["completion_tokens"]) == (5, 6, 7)
    assert (said["cached_tokens"], said["task"], said["version"]) == (4, "sentiment", 3)
    assert trail.rows["a"].preemptions == 2


def test_outside_of_a_request_nothing_is_kept() -> None:
    current().code = "lost"
    assert current().code is None
    trail = begin("x")
    assert current() is trail


def test_an_api_process_needs_no_opentelemetry() -> None:
    code = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None  # the API is FastAPI's
import softmux.api.process
from softmux.telemetry.tracing import missing
print(missing())
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_server_told_to_trace_without_the_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_NEEDED", ("opentelemetry_that_is_not_there.sdk",))
    assert tracing.missing()
    with (
        pytest.raises(RefusedToStart, match=r"pip install 'softmux\[otel\]'"),
        _listen(Settings(model="x", otlp_traces_endpoint="http://127.0.0.1:4318/v1/traces")),
    ):
        pass


def test_a_collector_that_is_away_keeps_nothing_up() -> None:
    tracer = tracing.Tracer.to("http://127.0.0.1:9/v1/traces")
    for _ in range(3):
        trail = Trail.of(None)
        told = tracer.tell(trail, {}, method="GET", route="/v1/model", status=200, tenant=None, ended=trail.began)
        assert told is not None
        assert len(told) == 32
    tracer.close()


def test_what_the_client_does_not_sample_makes_no_spans() -> None:
    tracer = tracing.Tracer.to("http://127.0.0.1:9/v1/traces")
    headers = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"}
    trail = Trail.of(None)
    assert tracer.tell(trail, headers, method="GET", route="", status=200, tenant=None, ended=trail.began) is None
    tracer.close()


def test_a_worker_that_counts_a_moment_more_than_the_api_makes_no_spans_that_overlap() -> None:
    provider, kept = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = tracing.Tracer(provider)
    trail = Trail.of(None)
    submitted = trail.began + 1.0
    trail.runs("gen-1", "base", None, submitted)
    trail.first(Output(id="gen-1-0", queue_seconds=0.25, prefill_seconds=0.5), submitted + 0.4)
    tracer.tell(trail, {}, method="POST", route="/v1/generate", status=200, tenant=None, ended=submitted + 0.5)
    tracer.close()
    spans = {span.name: span for span in kept.get_finished_spans()}
    inference, queue, prefill = spans["text_completion base"], spans["queue"], spans["prefill"]
    assert inference.start_time == queue.start_time == queue.end_time == prefill.start_time
    assert prefill.end_time == spans["decode"].start_time
