"""Replies that have to look like something: asked for over HTTP, and what can't be asked for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from softmux.bench.peers.schemas import random_schema
from support.served import Served

SCHEMA = random_schema(4)
DEEP: dict[str, Any] = {"type": "string", "maxLength": 2}
for _ in range(60):
    DEEP = {"type": "object", "properties": {"a": DEEP}, "additionalProperties": False}


def ask(server: Served, **body: Any) -> dict[str, Any]:
    answer = server.http.post("/v1/generate", json={"prompt": "The film", "max_tokens": 200, **body})
    assert answer.status_code == 200, answer.text
    reply: dict[str, Any] = answer.json()
    return reply


def refused(server: Served, param: str, **body: Any) -> str:
    answer = server.http.post("/v1/generate", json={"prompt": "The film", **body})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)
    return str(error["message"])


def test_every_form_for_a_task_and_without(server: Served) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "film", "strict": True, "schema": SCHEMA}}
    [choice] = ask(server, response_format=schema)["choices"]
    assert choice["finish_reason"] == "stop"
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(choice["text"]))
    body = {"prompt": "The film", "max_tokens": 200, "n": 3, "temperature": 1, "seed": 1}
    answer = server.http.post("/v1/generate?task=prompt-tuning", json={**body, "structured_outputs": {"json": SCHEMA}})
    choices = answer.json()["choices"]
    assert len(choices) == 3
    for one in choices:
        assert Draft202012Validator(SCHEMA).is_valid(json.loads(one["text"])), one
    for form, pattern in (
        ({"regex": "[a-f]{4}"}, "[a-f]{4}"),
        ({"choice": ["good", "bad"]}, "good|bad"),
        ({"grammar": 'start: "<" /[xy]+/ ">"'}, "<[xy]+>?"),
        ({"grammar": 'root ::= "no " ("way" | "one")'}, "no (way|one)"),
        ({"json": json.dumps({"const": 7})}, "7"),
    ):
        [choice] = ask(server, structured_outputs=form, max_tokens=20)["choices"]
        assert re.fullmatch(pattern, choice["text"]), (form, choice)
    assert ask(server, response_format={"type": "text"}, max_tokens=4)["choices"]


def test_a_stream_brings_the_same_document(server: Served) -> None:
    body = {"prompt": "The film", "max_tokens": 200, "structured_outputs": {"json": SCHEMA}}
    whole = server.http.post("/v1/generate", json=body).json()["choices"][0]["text"]
    parts = []
    with server.http.stream("POST", "/v1/generate", json={**body, "stream": True}) as events:
        for line in events.iter_lines():
            if line.startswith("data: {"):
                parts += [choice["text"] for choice in json.loads(line[6:])["choices"]]
    assert "".join(parts) == whole


def test_openais_routes_hold_their_replies_to_a_form(server: Served) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "film", "schema": SCHEMA}}
    body = {"model": "prompt-tuning", "prompt": "The film", "max_tokens": 200, "seed": 3, "response_format": schema}
    answer = server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(answer.json()["choices"][0]["text"]))
    chat = {"model": "prefix-tuning", "messages": [{"role": "user", "content": "Hello"}]}
    answer = server.http.post("/v1/chat/completions", json={**chat, "response_format": schema})
    assert answer.status_code == 200, answer.text
    assert Draft202012Validator(SCHEMA).is_valid(json.loads(answer.json()["choices"][0]["message"]["content"]))
    answer = server.http.post("/v1/chat/completions", json={**chat, "structured_outputs": {"choice": ["ja", "nein"]}})
    assert answer.json()["choices"][0]["message"]["content"] in ("ja", "nein")
    answer = server.http.post("/v1/chat/completions", json={**chat, "structured_outputs": {"regex": "("}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "structured_outputs")


def test_a_cut_document_says_length(server: Served) -> None:
    [choice] = ask(server, structured_outputs={"json": SCHEMA}, max_tokens=3)["choices"]
    assert choice["finish_reason"] == "length"


def test_what_contradicts_itself(server: Served) -> None:
    form = {"regex": "a+"}
    assert "ignore_eos" in refused(server, "ignore_eos", structured_outputs=form, ignore_eos=True)
    assert "min_tokens" in refused(server, "min_tokens", structured_outputs=form, min_tokens=2)
    both = {"type": "json_object"}
    assert "one of them" in refused(server, "structured_outputs", structured_outputs=form, response_format=both)
    assert "one of" in refused(server, "structured_outputs", structured_outputs={"regex": "a", "choice": ["a"]})
    assert "one of" in refused(server, "structured_outputs", structured_outputs={})
    assert "structural_tag" in refused(server, "structured_outputs", structured_outputs={"structural_tag": "a"})
    refused(server, "response_format", response_format={"type": "yaml"})
    refused(server, "response_format", response_format={"type": "json_schema"})
    refused(server, "structured_outputs", structured_outputs={"choice": []})


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"json": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json": {"not": {}}}, "not"),
        ({"json": {"type": "strin"}}, "strin"),
        ({"json": "{"}, "JSON schema"),
        ({"json": {"$ref": "https://example.org/schema"}}, "not fetch"),
        ({"json": {"$ref": "file:///etc/passwd"}}, "retriev"),
        ({"json": {"type": "object", "$ref": "#"}}, "circular"),
        ({"json": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}}, "begins"),
        ({"json": {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}}, "uniqueItems"),
        (
            {"json": {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(8)]} for i in range(9)]}},
            "too large",
        ),
        ({"regex": "("}, "unclosed"),
        ({"regex": "(?=a)b"}, "look-ahead"),
        ({"regex": "(" * 3000 + "a" + ")" * 3000}, "regular expression"),
        ({"grammar": "foo"}, "grammar"),
        ({"grammar": "start: a\na: b\nb: a"}, "begins"),
        ({"grammar": "start: " + "(" * 2000 + '"a"' + ")" * 2000}, "nested"),
        ({"json": {"enum": [f"{n:012}" for n in range(6000)]}}, "bytes"),
        ({"choice": ["a" * 1000] * 100}, "bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_can_not_be_followed_is_told_in_words(server: Served, form: dict[str, Any], words: str) -> None:
    message = refused(server, "structured_outputs", structured_outputs=form)
    assert words in message
    assert len(message) < 700
    assert refused(server, "structured_outputs", structured_outputs=form) == message, "and again, from memory"


def test_hostile_forms_leave_the_server_as_it_was(server: Served) -> None:
    worker = server.worker_pid()
    for form in (
        {"json": DEEP},
        {"regex": "((a{1,500}){1,500}){1,500}"},
        {"regex": "(x+x+)+y"},
        {"regex": ".*" * 1500},
        {"regex": "(.{0,400}a){40}"},
        {"json": {"type": "array", "items": {"type": "string", "pattern": "(a|b|ab)*c"}, "maxItems": 10**9}},
        {"grammar": 'start: start start | "a" | '},
        {"grammar": 'start: a{50000}\na: "x"'},
    ):
        answer = server.http.post(
            "/v1/generate", json={"prompt": "The film", "max_tokens": 8, "structured_outputs": form}
        )
        assert answer.status_code in (200, 422), answer.text
        if answer.status_code == 422:
            assert answer.json()["error"]["param"] == "structured_outputs", answer.text
    assert ask(server, max_tokens=4)["choices"]
    assert server.worker_pid() == worker


def test_metrics_tell_of_grammars(server: Served) -> None:
    ask(server, structured_outputs={"regex": "[0-9]{2}"})
    ask(server, structured_outputs={"regex": "[0-9]{2}"})
    page = server.http.get("/metrics").text
    for name in ("grammar_masks_total", "grammar_compile_seconds_count", 'grammar_cache_total{outcome="miss"}'):
        assert re.search(rf"^softmux_{re.escape(name)} [1-9]", page, re.MULTILINE), name
