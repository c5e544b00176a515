"""A request's spans, sent to an OpenTelemetry collector by OTLP over HTTP: made of its trail when it is over.

    POST /v1/generate                      SERVER, under the client's `traceparent`
      text_completion <task or base>       what was asked and used
        queue · prefill · decode           of each sequence

So a step and a token cost nothing, and a request some spans at its end. Names are those of OpenTelemetry's conventions
for generative AI (https://opentelemetry.io/docs/specs/semconv/gen-ai/), beside those vLLM gives what has no name there
(vllm/tracing). Neither prompts nor answers are told.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from softmux import __version__
from softmux.telemetry.trail import Row, Trail

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

MOST_ROWS = 16
"""Sequences of a request that have spans of their own."""
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/classify": "classify"}
_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def missing() -> bool:
    """Whether the packages that tracing takes are not installed."""
    try:
        return any(find_spec(name) is None for name in _NEEDED)
    except ModuleNotFoundError:
        return True


class Tracer:
    """`tell` makes a request's spans; a thread of the SDK's sends them, and drops them where the collector is away.

    What is sampled, and how the service is called, is said by OpenTelemetry's own variables (`OTEL_TRACES_SAMPLER`,
    `OTEL_SERVICE_NAME`, `OTEL_EXPORTER_OTLP_HEADERS`, …).
    """

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider, self._trace = provider, trace
        self._tracer = provider.get_tracer("softmux", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str) -> Tracer:
        """One that sends to `endpoint` (`http://collector:4318/v1/traces`)."""
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        named = {SERVICE_NAME: "softmux", "service.version": __version__} | dict(
            OTELResourceDetector().detect().attributes
        )
        provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=5)))
        return cls(provider)

    def close(self) -> None:
        """Sends what is left."""
        self._provider.shutdown()

    def tell(
        self, trail: Trail, headers: Mapping[str, str], *, method: str, route: str, status: int, tenant: str | None,
        ended: float,
    ) -> str | None:  # fmt: skip
        """Makes the spans of a request that is over; its trace's id, None where it is not sampled. `ended` is on the
        clock of `trail.began`."""
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.response.status_code": status,
            "softmux.request_id": trail.request_id,
        }
        if route:
            attributes["http.route"] = route
        if tenant is not None:
            attributes["softmux.tenant"] = tenant
        root = self._tracer.start_span(
            f"{method} {route}".rstrip(),
            context=self._propagator.extract(headers),
            kind=self._trace.SpanKind.SERVER,
            start_time=_ns(trail, trail.began),
            attributes=attributes,
        )
        if not root.is_recording():
            return None
        if trail.base:
            self._inference(root, trail, route, ended)
        self._mark(root, trail, failed=status >= 500)
        root.end(_ns(trail, ended))
        return format(root.get_span_context().trace_id, "032x")

    def _inference(self, root: Span, trail: Trail, route: str, ended: float) -> None:
        operation = _OPERATIONS.get(route, "text_completion")
        model = trail.adapter.task if trail.adapter is not None else trail.base
        span = self._tracer.start_span(
            f"{operation} {model}",
            context=self._trace.set_span_in_context(root),
            start_time=_ns(trail, trail.submitted),
            attributes=_attributes(trail, operation, model, ended),
        )
        inner = self._trace.set_span_in_context(span)
        for name, row in list(trail.rows.items())[:MOST_ROWS]:
            self._row(inner, trail, name, row)
        self._mark(span, trail, failed=trail.code is not None)
        span.end(_ns(trail, ended))

    def _row(self, context: Any, trail: Trail, name: str, row: Row) -> None:
        """The worker's times count from what it received; what lies between it and the API is no part of them.
        Spans follow upon each other, whatever two clocks say of the last microsecond."""
        decoding = row.first
        prefilling = max(trail.submitted, decoding - row.prefill)
        waiting = max(trail.submitted, prefilling - row.queue)
        named: dict[str, Any] = {"softmux.sequence": name}
        for title, begin, end, more in (
            ("queue", waiting, prefilling, {"softmux.preemptions": row.preemptions}),
            ("prefill", prefilling, decoding, {"softmux.cached_tokens": row.cached}),
            ("decode", decoding, row.last, {"softmux.finish_reason": row.finish_reason or ""}),
        ):
            span = self._tracer.start_span(
                title, context=context, start_time=_ns(trail, begin), attributes={**named, **more}
            )
            span.end(_ns(trail, max(begin, end)))

    def _mark(self, span: Span, trail: Trail, *, failed: bool) -> None:
        if trail.code is not None:
            span.set_attribute("error.type", trail.code)
        if failed:
            span.set_status(self._trace.StatusCode.ERROR, trail.code)


def _ns(trail: Trail, at: float) -> int:
    return int((trail.wall + (at - trail.began)) * 1e9)


def _attributes(trail: Trail, operation: str, model: str, ended: float) -> dict[str, Any]:
    rows = list(trail.rows.values())
    said: dict[str, Any] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "softmux",
        "gen_ai.request.model": model,
        "gen_ai.response.model": trail.base,
        "gen_ai.response.id": trail.reply,
        "gen_ai.response.finish_reasons": [row.finish_reason or "none" for row in rows],
        "gen_ai.usage.input_tokens": trail.prompt_tokens,
        "gen_ai.usage.output_tokens": trail.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": trail.cached_tokens,
        "gen_ai.usage.prompt_tokens": trail.prompt_tokens,
        "gen_ai.usage.completion_tokens": trail.completion_tokens,
        "gen_ai.usage.num_sequences": len(rows),
        "gen_ai.request.id": trail.request_id,
        "gen_ai.latency.e2e": ended - trail.began,
    }
    sampling = trail.sampling
    if sampling is not None:
        said |= {
            "gen_ai.request.max_tokens": sampling.max_tokens,
            "gen_ai.request.temperature": sampling.temperature,
            "gen_ai.request.top_p": sampling.top_p,
            "gen_ai.request.n": trail.samples,
        }
        if trail.samples != 1:  # one choice is not told, by the conventions
            said["gen_ai.request.choice.count"] = trail.samples
        if sampling.seed is not None:
            said["gen_ai.request.seed"] = sampling.seed
    if rows:
        first = min(rows, key=lambda row: row.first)
        last = max(row.last for row in rows)
        said |= {
            "gen_ai.latency.time_in_queue": first.queue,
            "gen_ai.latency.time_to_first_token": first.first - trail.began,
            "gen_ai.latency.time_in_model_prefill": first.prefill,
            "gen_ai.latency.time_in_model_decode": last - first.first,
            "gen_ai.latency.time_in_model_inference": first.prefill + last - first.first,
        }
    adapter = trail.adapter
    if adapter is not None:
        said |= {
            "softmux.task": adapter.task,
            "softmux.version": adapter.version,
            "softmux.digest": adapter.digest,
            "softmux.method": adapter.method,
            "softmux.virtual_tokens": trail.virtual_tokens,
        }
    return said
