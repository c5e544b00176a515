"""Inputs that a version was not trained on the like of: said on every route, counted by task and side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from softmux.client import Client
from support.served import Served, upload_parts

LONG = "The film was a gripping, beautiful piece of work"
METRIC = "softmux_requests_beyond_trained_lengths"


@pytest.fixture(scope="module")
def ranged(server: Served, adapters: dict[str, Path]) -> Iterator[Served]:
    """The shared server, with a task trained on two to six tokens."""
    said = {"trained_lengths": [2, 6], "labels": ["yes", "no"]}
    parts = upload_parts(adapters["prompt-tuning"], **{"softmux.json": json.dumps(said).encode()})
    assert server.http.put("/v1/adapters/ranged", files=parts).status_code == 201
    yield server
    assert server.http.delete("/v1/adapters/ranged").status_code == 204


def counted(server: Served) -> dict[str, float]:
    families = text_string_to_metric_families(server.http.get("/metrics").text)
    samples = [sample for family in families if family.name == METRIC for sample in family.samples]
    return {s.labels["side"]: s.value for s in samples if s.name.endswith("_total") and s.labels["task"] == "ranged"}


def ask(server: Served, path: str, **body: Any) -> dict[str, Any]:
    response = server.http.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_every_route_says_and_counts_what_lies_beyond(ranged: Served) -> None:
    before = counted(ranged)
    generate, length = "/v1/generate?task=ranged", len(LONG.encode())
    within = ask(ranged, generate, prompt=[5, 6, 7, 8, 9, 10], max_tokens=1)
    assert within["usage"]["prompt_tokens"] == 6
    assert "warnings" not in within
    reply = ask(ranged, generate, prompt=LONG, max_tokens=1)
    tokens = reply["usage"]["prompt_tokens"]
    assert 6 < tokens <= length
    expected = (
        f"The input is longer than what this version was trained on: {tokens} tokens, and it was trained on 2 to 6."
    )
    assert reply["warnings"] == [expected]
    for path in ("/v1/completions", "/v1/chat/completions"):
        asked = {"prompt": LONG} if path == "/v1/completions" else {"messages": [{"role": "user", "content": LONG}]}
        [warning] = ask(ranged, path, model="ranged", max_tokens=1, **asked)["warnings"]
        assert "longer than what this version was trained on" in warning
    assert ask(ranged, "/v1/classify?task=ranged", input=[LONG, "a b"])["warnings"][0].startswith("1 of 2 inputs are")
    assert ask(ranged, generate, prompt=["a b", LONG, f"{LONG}, {LONG}"], max_tokens=1)["warnings"][0].startswith(
        "2 of 3 inputs are longer than what this version was trained on: up to "
    )
    [short] = ask(ranged, generate, prompt=[5], max_tokens=1)["warnings"]
    assert short.startswith("The input is shorter than what this version was trained on: 1 tokens,")
    grown = {side: value - before.get(side, 0) for side, value in counted(ranged).items()}
    assert grown == {"longer": 5, "shorter": 1}


def test_each_event_of_a_stream_says_it(ranged: Served) -> None:
    with Client(ranged.url) as client:
        stream = list(client.stream(LONG, task="ranged", max_tokens=3))
        assert all("longer than" in chunk.warnings[0] for chunk in stream)
        assert client.generate("a b", task="ranged", max_tokens=1).warnings == ()


def test_nothing_is_said_of_a_version_that_names_no_range(server: Served) -> None:
    text_before = server.http.get("/metrics").text.count(METRIC + "_total{")
    for path in ("/v1/generate?task=prompt-tuning", "/v1/generate"):
        assert "warnings" not in ask(server, path, prompt=f"{LONG}. " * 3, max_tokens=1)
    assert server.http.get("/metrics").text.count(METRIC + "_total{") == text_before
