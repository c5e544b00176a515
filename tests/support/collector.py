"""An OpenTelemetry collector: takes traces by OTLP over HTTP, and keeps their spans."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Span:
    name: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    attributes: dict[str, Any]
    failed: bool
    service: str


class Collector:
    """`with Collector() as collector:` listens at `endpoint`."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        collector = self

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector._spans += _spans(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def of(self, request_id: str, seconds: float = 60) -> list[Span]:
        """All spans of the trace in which that request is, once its first span has come."""

        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            for span in self._spans:
                if span.attributes.get("softmux.request_id") == request_id:
                    return [one for one in self._spans if one.trace == span.trace]
            time.sleep(0.05)
        raise AssertionError("no span has come")


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            name=span.name,
            trace=span.trace_id.hex(),
            id=span.span_id.hex(),
            parent=span.parent_span_id.hex(),
            begin=span.start_time_unix_nano,
            end=span.end_time_unix_nano,
            attributes={each.key: _value(each.value) for each in span.attributes},
            failed=span.status.code == 2,
            service=next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name"),
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
