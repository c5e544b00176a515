"""A server that logs and traces: one line for each request, and spans that go to a collector, in the client's trace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.collector import Collector, Span
from support.served import Served, upload_parts

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "nobody may read this"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(
    base: tuple[Any, Path], adapters: dict[str, Path], collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    data = tmp_path_factory.mktemp("traced") / "data"
    environment = {"SOFTMUX_OTLP_TRACES_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    with Served(base[1], data, env=environment) as server:
        parts = upload_parts(adapters["prompt-tuning"], **{"softmux.json": b'{"labels": ["sports", "weather"]}'})
        assert server.http.put("/v1/adapters/sentiment", files=parts).status_code == 201
        yield server
        assert server.end() == 0


def line(server: Served, request_id: str) -> dict[str, Any]:
    """The one line of a request."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        lines = [json.loads(text) for text in server.log.read_text("utf-8").splitlines() if text.startswith("{")]
        found = [said for said in lines if said.get("request_id") == request_id and said["event"] == "answered"]
        if found:
            assert len(found) == 1
            return found[0]
        time.sleep(0.05)
    raise AssertionError(f"no line of {request_id}")


def ask(server: Served, request_id: str, **body: Any) -> Any:
    asked = {"prompt": SECRET, "max_tokens": 5, "ignore_eos": True, **body}
    headers = {"x-request-id": request_id}
    return server.http.post("/v1/generate", params={"task": "sentiment"}, json=asked, headers=headers)


def named(spans: list[Span], name: str) -> list[Span]:
    return [span for span in spans if span.name == name]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_has_one_line_with_all_there_is_to_know_but_what_was_said(traced: Served, stream: bool) -> None:
    name = f"mine-{stream}"
    answer = ask(traced, name, stream=stream)
    assert answer.headers["x-request-id"] == name
    said = line(traced, name)
    version = traced.http.get("/v1/adapters/sentiment").json()
    assert (said["task"], said["version"], said["digest"]) == ("sentiment", 1, version["digest"])
    assert (said["tenant"], said["status"], said["method"], said["path"]) == ("default", 200, "POST", "/v1/generate")
    assert said["prompt_tokens"] > 0
    assert said["completion_tokens"] == 5
    assert said["finish_reasons"] == ["length"]
    assert 0 <= said["queue_ms"] <= said["first_token_ms"] <= said["ms"]
    assert 0 < said["prefill_ms"] <= said["first_token_ms"]
    assert said["reply"].startswith("gen-")
    assert len(said["trace_id"]) == 32
    assert SECRET not in traced.log.read_text("utf-8")


def test_what_is_refused_says_why(traced: Served) -> None:
    headers = {"x-request-id": "refused"}
    answer = traced.http.post("/v1/generate", params={"task": "nothing"}, json={"prompt": "x"}, headers=headers)
    assert answer.status_code == 404
    said = line(traced, "refused")
    assert (said["status"], said["code"], said["task"]) == (404, "task_not_found", "nothing")
    assert "completion_tokens" not in said


@pytest.mark.parametrize("sent", [None, "", "a b", "x" * 129, "é"])
def test_a_request_without_a_good_id_is_given_one(traced: Served, sent: str | None) -> None:
    headers = {} if sent is None else {"x-request-id": sent.encode("latin-1")}
    answer = traced.http.get("/v1/model", headers=headers)
    assert answer.headers["x-request-id"].startswith("req-")
    assert line(traced, answer.headers["x-request-id"])["path"] == "/v1/model"


def test_a_collector_gets_the_request_its_queue_and_its_steps(traced: Served, collector: Collector) -> None:
    before = time.time_ns()
    headers = {"x-request-id": "spans", "traceparent": PARENT}
    asked = {"prompt": SECRET, "max_tokens": 4, "ignore_eos": True, "temperature": 0.5, "seed": 7, "n": 2}
    reply = traced.http.post("/v1/generate", params={"task": "sentiment"}, json=asked, headers=headers).json()
    spans = collector.of("spans")
    assert {span.service for span in spans} == {"softmux"}
    assert {span.trace for span in spans} == {PARENT.split("-")[1]}, "the client's trace goes on"
    (root,) = named(spans, "POST /v1/generate")
    assert root.parent == PARENT.split("-")[2]
    assert root.attributes["http.response.status_code"] == 200
    (inference,) = named(spans, "text_completion sentiment")
    assert inference.parent == root.id
    told = inference.attributes
    assert told["gen_ai.request.model"] == told["softmux.task"] == "sentiment"
    assert told["gen_ai.response.model"] == reply["model"]
    assert told["gen_ai.response.id"] == reply["id"]
    assert told["gen_ai.response.finish_reasons"] == ["length", "length"]
    assert told["gen_ai.usage.input_tokens"] == told["gen_ai.usage.prompt_tokens"] == reply["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == told["gen_ai.usage.completion_tokens"] == 8
    cached = reply["usage"]["cached_tokens"]
    assert cached > 0, "which both samples found"
    assert told["gen_ai.usage.cache_read.input_tokens"] == line(traced, "spans")["cached_tokens"] == cached
    assert told["softmux.virtual_tokens"] == reply["usage"]["virtual_tokens"]
    assert told["softmux.digest"] == reply["adapter"]["digest"]
    assert (told["gen_ai.request.max_tokens"], told["gen_ai.request.temperature"]) == (4, 0.5)
    assert (told["gen_ai.request.seed"], told["gen_ai.request.n"], told["gen_ai.request.choice.count"]) == (7, 2, 2)
    waited, first = told["gen_ai.latency.time_in_queue"], told["gen_ai.latency.time_to_first_token"]
    assert 0 <= waited <= first <= told["gen_ai.latency.e2e"]
    assert 0 < told["gen_ai.latency.time_in_model_prefill"] <= told["gen_ai.latency.time_in_model_inference"]
    steps = [named(spans, name) for name in ("queue", "prefill", "decode")]
    assert [len(of_a_kind) for of_a_kind in steps] == [2, 2, 2], "each of the two sequences has its own"
    for sequence in {span.attributes["softmux.sequence"] for span in steps[0]}:
        queue, prefill, decode = (
            next(span for span in of_a_kind if span.attributes["softmux.sequence"] == sequence) for of_a_kind in steps
        )
        assert {queue.parent, prefill.parent, decode.parent} == {inference.id}
        assert before < root.begin <= inference.begin <= queue.begin <= queue.end == prefill.begin
        assert prefill.begin < prefill.end == decode.begin <= decode.end <= inference.end <= root.end
    assert SECRET not in repr(spans)


def test_choices_are_counted_as_they_were_asked_for_of_each_prompt(traced: Served, collector: Collector) -> None:
    for n in (1, 2):
        assert ask(traced, f"batch-{n}", prompt=["x", "y", "z"], n=n).status_code == 200
    (one,), (two,) = (named(collector.of(f"batch-{n}"), "text_completion sentiment") for n in (1, 2))
    assert (one.attributes["gen_ai.request.n"], one.attributes["gen_ai.usage.num_sequences"]) == (1, 3)
    assert "gen_ai.request.choice.count" not in one.attributes
    assert (two.attributes["gen_ai.request.n"], two.attributes["gen_ai.usage.num_sequences"]) == (2, 6)
    assert two.attributes["gen_ai.request.choice.count"] == 2


def test_classification_and_errors_are_traced_too(traced: Served, collector: Collector) -> None:
    headers = {"x-request-id": "classified"}
    traced.http.post("/v1/classify", params={"task": "sentiment"}, json={"input": "rain"}, headers=headers)
    spans = collector.of("classified")
    (inference,) = named(spans, "classify sentiment")
    assert inference.attributes["gen_ai.usage.num_sequences"] == 2
    assert inference.attributes["gen_ai.usage.output_tokens"] == 0
    traced.http.post("/v1/generate", params={"task": "nothing"}, json={"prompt": "x"}, headers={"x-request-id": "no"})
    (root,) = collector.of("no")
    assert root.attributes["error.type"] == "task_not_found"
    assert not root.failed, "the client's fault is no failure of the server"
    traced.http.get("/v1/adapters/sentiment", headers={"x-request-id": "read"})
    (root,) = collector.of("read")
    assert root.name == "GET /v1/adapters/{task}", "names in paths make no names of spans"
    traced.http.head("/v1/adapters/sentiment", headers={"x-request-id": "headed"})
    (root,) = collector.of("headed")
    assert (root.name, root.attributes["http.route"]) == ("HEAD /v1/adapters/{task}", "/v1/adapters/{task}")


def test_openais_routes_are_traced_by_their_own_names(traced: Served, collector: Collector) -> None:
    asked = {"model": "sentiment", "prompt": "x", "max_tokens": 3}
    headers = {"x-request-id": "completion"}
    answer = traced.http.post("/v1/completions", json=asked, headers=headers)
    assert answer.status_code == 200, answer.text
    spans = collector.of("completion")
    (root,) = named(spans, "POST /v1/completions")
    (inference,) = named(spans, "text_completion sentiment")
    assert inference.parent == root.id
    assert inference.attributes["gen_ai.response.id"] == answer.json()["id"]
    said = line(traced, "completion")
    assert (said["task"], said["completion_tokens"]) == ("sentiment", answer.json()["usage"]["completion_tokens"])
    asked = {"model": "sentiment", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3}
    answer = traced.http.post("/v1/chat/completions", json=asked, headers={"x-request-id": "chat"})
    (root,) = named(collector.of("chat"), "POST /v1/chat/completions")
    assert root.attributes["http.response.status_code"] == answer.status_code
    assert len(named(collector.of("chat"), "chat sentiment")) == (answer.status_code == 200)


def test_a_stop_string_and_a_client_that_leaves_end_their_spans(traced: Served, collector: Collector) -> None:
    text = ask(traced, "whole", max_tokens=30).json()["choices"][0]["text"]
    reply = ask(traced, "stopped", max_tokens=30, stop=text[4:6]).json()
    assert reply["choices"][0]["finish_reason"] == "stop"
    (decode,) = named(collector.of("stopped"), "decode")
    assert decode.attributes["softmux.finish_reason"] == "stop"
    asked = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "stream": True}
    with traced.http.stream("POST", "/v1/generate", json=asked, headers={"x-request-id": "left"}) as answer:
        next(answer.iter_bytes())
    assert line(traced, "left")["code"] == "gone"
    assert named(collector.of("left"), "POST /v1/generate")[0].attributes["error.type"] == "gone"
