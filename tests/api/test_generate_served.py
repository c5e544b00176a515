"""`POST /v1/generate` of a real server, with the real engine behind it."""

from __future__ import annotations

import gzip
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoTokenizer

from support.models import greedy_reference, load_peft
from support.served import VOCABULARY, Served, upload_parts

PROMPTS = ["The film was a gripping", "déjà vu: 東京", "def answer(x):", "a"]


def generate(server: Served, task: str | None = None, **body: Any) -> dict[str, Any]:
    response = server.http.post("/v1/generate", params={"task": task} if task else {}, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(server: Served, task: str | None = None, **body: Any) -> list[dict[str, Any]]:
    """All events of a streamed reply; the last one was [DONE]."""
    params = {"task": task} if task else {}
    with server.http.stream("POST", "/v1/generate", params=params, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [block for block in "".join(response.iter_text()).split("\n\n") if block]
    assert all(event.startswith("data: ") for event in events)
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def joined(events: list[dict[str, Any]], index: int = 0) -> tuple[str, list[int], list[str]]:
    mine = [choice for event in events for choice in event["choices"] if choice["index"] == index]
    return (
        "".join(choice["text"] for choice in mine),
        [token for choice in mine for token in choice.get("token_ids", [])],
        [choice["finish_reason"] for choice in mine],
    )


def test_mixed_tasks_at_once_are_token_exact(server: Served, base: tuple[Any, Path], adapters: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base[1])
    models: dict[str | None, Any] = {task: load_peft(base[0], folder) for task, folder in adapters.items()}
    models[None] = base[0]
    jobs = [(task, prompt) for prompt in PROMPTS for task in models]

    def run(job: tuple[str | None, str]) -> dict[str, Any]:
        return generate(server, job[0], prompt=job[1], max_tokens=12, return_token_ids=True)

    for _ in range(2):  # cold, then from the cache
        with ThreadPoolExecutor(len(jobs)) as pool:
            replies = list(pool.map(run, jobs))
        for (task, prompt), reply in zip(jobs, replies, strict=True):
            ids = tokenizer(prompt)["input_ids"]
            expected, certain = greedy_reference(models[task], ids, 12)
            [choice] = reply["choices"]
            assert choice["token_ids"][:certain] == expected[:certain]
            assert choice["text"] == tokenizer.decode(choice["token_ids"], skip_special_tokens=True)
            usage = reply["usage"]
            assert usage["prompt_tokens"] == len(ids)
            assert usage["completion_tokens"] == len(choice["token_ids"])
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
            if task is None:
                assert reply["adapter"] is None
                assert usage["virtual_tokens"] == 0
            else:
                assert reply["adapter"]["task"] == task
                assert reply["adapter"]["digest"].startswith("sha256:")
                assert usage["virtual_tokens"] in (4, 5, 7)
    assert all(reply["usage"]["cached_tokens"] > 0 for reply in replies)


def test_the_reply_has_the_contracts_shape(server: Served) -> None:
    reply = generate(server, "prompt-tuning", prompt="a film", max_tokens=2)
    assert reply["id"].startswith("gen-")
    assert reply["object"] == "generation"
    assert isinstance(reply["created"], int)
    assert set(reply["adapter"]) == {"task", "version", "digest", "method"}
    [choice] = reply["choices"]
    assert choice["logprobs"] is None
    assert "token_ids" not in choice
    assert choice["finish_reason"] == "length"
    assert generate(server, "prompt-tuning@1", prompt="a film", max_tokens=2)["choices"] == reply["choices"]


@pytest.mark.parametrize("task", [None, "prompt-tuning", "prefix-tuning"])
def test_a_stream_joined_is_the_whole_reply(server: Served, task: str | None) -> None:
    body: dict[str, Any] = {"prompt": PROMPTS[1], "max_tokens": 40, "return_token_ids": True, "ignore_eos": True}
    whole = generate(server, task, **body)
    events = chunks(server, task, **body)
    text, ids, reasons = joined(events)
    assert (text, ids) == (whole["choices"][0]["text"], whole["choices"][0]["token_ids"])
    assert reasons[-1] == "length"
    assert set(reasons[:-1]) <= {None}
    assert len(events) > 1
    assert all(event["object"] == "generation.chunk" for event in events)
    assert [("usage" in event) for event in events] == [False] * (len(events) - 1) + [True]
    assert events[-1]["usage"]["completion_tokens"] == 40


def test_a_batch_with_samples_is_ordered_by_prompt_then_sample(server: Served) -> None:
    body: dict[str, Any] = {"max_tokens": 6, "temperature": 1.0, "seed": 5, "ignore_eos": True}
    batch = generate(server, "prompt-tuning", prompt=PROMPTS[:3], n=2, **body)
    assert [choice["index"] for choice in batch["choices"]] == list(range(6))
    for number, prompt in enumerate(PROMPTS[:3]):
        alone = generate(server, "prompt-tuning", prompt=prompt, n=2, **body)
        texts = [choice["text"] for choice in alone["choices"]]
        assert [choice["text"] for choice in batch["choices"][2 * number : 2 * number + 2]] == texts
        assert texts[0] != texts[1]
    events = chunks(server, "prompt-tuning", prompt=PROMPTS[:3], n=2, **body)
    assert [joined(events, i)[0] for i in range(6)] == [choice["text"] for choice in batch["choices"]]
    assert sum("usage" in event for event in events) == 1


def test_a_stop_string_ends_the_text_and_is_not_in_it(server: Served) -> None:
    body: dict[str, Any] = {"prompt": PROMPTS[0], "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
    free = generate(server, **body)["choices"][0]
    text = free["text"]
    stop = text[10:13]
    stopped = generate(server, stop=["never this", stop], **body)
    choice = stopped["choices"][0]
    assert choice["text"] == text[: text.index(stop)]
    assert choice["finish_reason"] == "stop"
    assert choice["token_ids"] == free["token_ids"][: len(choice["token_ids"])]
    assert stopped["usage"]["completion_tokens"] == len(choice["token_ids"]) < 40
    streamed, ids, reasons = joined(chunks(server, stop=stop, **body))
    assert (streamed, ids, reasons[-1]) == (choice["text"], choice["token_ids"], "stop")
    assert generate(server, stop=stop, min_tokens=40, **body)["choices"][0]["finish_reason"] == "length"


def test_logprobs_are_in_openais_shape(server: Served) -> None:
    body: dict[str, Any] = {"prompt": PROMPTS[0], "max_tokens": 5, "ignore_eos": True, "logprobs": 3}
    choice = generate(server, **body)["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {5}
    for token, value, best in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert 3 <= len(best) <= 4
        assert best[token] == pytest.approx(value)
        assert value == max(best.values())  # greedy
    assert logprobs["text_offset"][0] == 0
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert all(
        len(best) == 1 for best in generate(server, **{**body, "logprobs": 0})["choices"][0]["logprobs"]["top_logprobs"]
    )
    events = chunks(server, **body)
    tokens = [token for event in events for c in event["choices"] for token in c["logprobs"]["tokens"]]
    assert tokens == logprobs["tokens"]


def test_a_chat_is_rendered_with_the_models_template(server: Served, base: tuple[Any, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base[1])
    chat = [{"role": "user", "content": "hi"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    for task in (None, "prefix-tuning"):
        by_chat = generate(server, task, messages=chat, max_tokens=6)
        by_ids = generate(server, task, prompt=ids, max_tokens=6)
        assert by_chat["choices"] == by_ids["choices"]
        assert by_chat["usage"]["prompt_tokens"] == len(ids)
    parts = [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}]
    assert (
        generate(server, messages=parts, max_tokens=6)["choices"]
        == generate(server, messages=chat, max_tokens=6)["choices"]
    )


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCABULARY]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "prompt"),
        ({"prompt": "a", "variables": {"x": "y"}}, "variables"),
        ({"messages": [{"role": "wizard", "content": "b"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "a", "min_tokens": 65}, "min_tokens"),
        ({"prompt": "a", "temperature": -0.1}, "temperature"),
        ({"prompt": "a", "top_p": 0}, "top_p"),
        ({"prompt": "a", "n": 9}, "n"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "stop": ["x"] * 9}, "stop"),
        ({"prompt": "a", "stop": ""}, "stop"),
        ({"prompt": "a", "logit_bias": {str(VOCABULARY): 1.0}}, "logit_bias"),
        ({"prompt": "a", "seed": 2**64}, "seed"),
        ({"prompt": "a", "priority": 11}, "priority"),
        ({"prompt": "a", "priority": -11}, "priority"),
        ({"prompt": "a", "priority": 0.5}, "priority"),
        ({"prompt": "a", "maxtokens": 1}, "maxtokens"),
        ({"prompt": ["a"] * 3000, "n": 8}, "prompt"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_its_field(server: Served, body: dict[str, Any], param: str) -> None:
    response = server.http.post("/v1/generate", json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("taks=prompt-tuning", "taks"),
        ("task=prompt-tuning&stream=true", "stream"),
        ("Task=a", "Task"),
        ("taks=a&taks=b", "taks"),
    ],
)
@pytest.mark.parametrize("route", ["generate", "classify"])
def test_a_query_that_is_not_known_gets_no_answer_of_the_bare_model(
    server: Served, route: str, query: str, param: str
) -> None:
    body = {"prompt": "a"} if route == "generate" else {"input": "a"}
    response = server.http.post(f"/v1/{route}?{query}", json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert f"no query parameter “{param}”" in error["message"]


@pytest.mark.parametrize("route", ["generate", "classify"])
def test_a_query_names_one_task(server: Served, route: str) -> None:
    body = {"prompt": "a"} if route == "generate" else {"input": "a"}
    response = server.http.post(f"/v1/{route}?task=prompt-tuning&task=prefix-tuning", json=body)
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "task")
    assert "more than once" in error["message"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "bad_request"),
        (b"", "application/json", 400, "bad_request"),
        (b"\xff\xfe", "application/json", 400, "bad_request"),
        (b"[" * 50_000, "application/json", 400, "bad_request"),
        (b'{"prompt": "\\ud800"}', "application/json", 400, "bad_request"),
        (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", "application/json", 400, "bad_request"),
        (b"[]", "application/json", 422, "invalid_request"),
        (b'{"prompt": "a", "temperature": NaN}', "application/json", 422, "invalid_request"),
        (b'{"prompt": "a", "temperature": 1e400}', "application/json", 422, "invalid_request"),
        (b'{"prompt": "a", "temperature": -Infinity}', "application/json", 422, "invalid_request"),
        (b'{"prompt": [1' + b"0" * 400 + b"]}", "application/json", 422, "invalid_request"),
        (b"prompt=a", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b'{"prompt": "' + b"a" * 200_000 + b'"}', "application/json", 413, "too_large"),
        (json.dumps({"prompt": "a", "max_tokens": 600}).encode(), "application/json", 400, "context_too_long"),
        (json.dumps({"prompt": "a " * 600}).encode(), "application/json", 400, "context_too_long"),
    ],
)
def test_a_body_that_is_none_is_refused_in_words(
    server: Served, content: bytes, kind: str, status: int, code: str
) -> None:
    response = server.http.post("/v1/generate", content=content, headers={"content-type": kind})
    assert response.status_code == status
    error = response.json()["error"]
    assert error["code"] == code
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10


def test_a_stream_that_fails_before_its_first_token_has_its_own_status(server: Served) -> None:
    response = server.http.post("/v1/generate", json={"prompt": "a", "max_tokens": 600, "stream": True})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_too_long"


@pytest.mark.parametrize(
    ("task", "code"),
    [
        ("nope", "task_not_found"),
        ("prompt-tuning@9", "version_not_found"),
        ("prompt-tuning@x", "version_not_found"),
        ("prompt-tuning@0", "version_not_found"),
        ("../etc", "task_not_found"),
        ("", "task_not_found"),
    ],
)
def test_what_is_not_there_is_404(server: Served, task: str, code: str) -> None:
    response = server.http.post("/v1/generate", params={"task": task}, json={"prompt": "a"})
    assert response.status_code == 404
    assert response.json()["error"]["code"] == code


def test_no_such_route_and_no_such_method(server: Served) -> None:
    response = server.http.get("/v2/generate")
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    response = server.http.get("/v1/generate")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/", "/v1/model", "/v1/adapters", "/v1/adapters/none"]
)
def test_a_head_is_a_get_without_its_body(server: Served, path: str) -> None:
    asked, head = server.http.get(path), server.http.head(path)
    assert (head.status_code, head.content) == (asked.status_code, b"")
    assert head.headers["content-type"] == asked.headers["content-type"]
    assert head.headers["content-length"] == asked.headers["content-length"]
    assert server.http.get("/health/live").json() == {"status": "live"}, "the connection goes on"


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/adapters", "GET, HEAD"),
        ("/v1/generate", "POST"),
        ("/v1/adapters/mood", "DELETE, GET, HEAD, PUT"),
        ("/v1/adapters/mood/shares", "DELETE, GET, HEAD, PUT"),
        ("/v1/tenants/acme", "DELETE, GET, HEAD, PATCH"),
        ("/v1/keys", "GET, HEAD, POST"),
    ],
)
def test_all_methods_of_a_path_are_named(server: Served, path: str, methods: str) -> None:
    response = server.http.request("TRACE", path)
    assert (response.status_code, response.headers["allow"]) == (405, methods)
    assert f"it takes {methods}." in response.json()["error"]["message"]


def test_a_compressed_body_is_refused_as_one(server: Served, adapters: dict[str, Path]) -> None:
    body = gzip.compress(b'{"prompt": "a"}')
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = server.http.post("/v1/generate", content=body, headers=headers)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (415, "unsupported_media_type")
    assert "without content-encoding: gzip" in error["message"]
    parts = upload_parts(adapters["prompt-tuning"])
    assert server.http.put("/v1/adapters/x", files=parts, headers={"content-encoding": "br"}).status_code == 415
    for plain in ("identity", ""):
        headers["content-encoding"] = plain
        assert server.http.post("/v1/generate", content=b'{"prompt": "a", "max_tokens": 1}', headers=headers).is_success


def test_the_routes_around_it(server: Served) -> None:
    model = server.http.get("/v1/model").json()
    assert model["architecture"] == "LlamaForCausalLM"
    assert model["context_length"] == 512
    assert model["base_fingerprint"].startswith("sha256:")
    assert server.http.get("/health/live").status_code == 200
    assert server.http.get("/docs").status_code == 200
    paths = server.http.get("/openapi.json").json()["paths"]
    assert "requestBody" in paths["/v1/generate"]["post"]


def test_every_reference_of_the_openapi_document_leads_somewhere(server: Served) -> None:
    document = server.http.get("/openapi.json").json()

    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            named = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return named + [found for inner in value.values() for found in references(inner)]
        return [found for inner in value for found in references(inner)] if isinstance(value, list) else []

    for reference in references(document):
        place = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in place, f"{reference} is not there"
            place = place[step]
    body = document["paths"]["/v1/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "role" in json.dumps(body["properties"]["messages"])


def test_prompts_are_not_logged(server: Served) -> None:
    generate(server, prompt="a secret wish", max_tokens=1)
    assert "/v1/generate" in server.log.read_text()
    assert "secret wish" not in server.log.read_text()


def test_metrics_tell_of_requests_and_of_the_engine(server: Served) -> None:
    generate(server, "prompt-tuning", prompt="a", max_tokens=3)
    text = server.http.get("/metrics").text
    assert 'softmux_requests_total{outcome="ok",task="prompt-tuning"}' in text
    assert 'softmux_generation_tokens_total{task="prompt-tuning"}' in text
    values = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }
    assert values["softmux_engine_steps_total"] > 0
    assert values["softmux_worker_up"] == 1
    assert values["softmux_batch_rows_count"] > 0
    assert values['softmux_batch_rows_bucket{le="+Inf"}'] == values["softmux_batch_rows_count"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(server: Served, stream: bool) -> None:
    def gone() -> float:
        found = re.search(r'^softmux_requests_total\{outcome="gone".* (\S+)$', server.http.get("/metrics").text, re.M)
        return float(found[1]) if found else 0.0

    before = gone()
    body = {"prompt": ["a"] * 8, "n": 8, "max_tokens": 480, "ignore_eos": True, "stream": stream}
    if stream:
        with server.http.stream("POST", "/v1/generate", json=body) as response:
            next(response.iter_bytes())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/generate", json=body, timeout=0.5)
    for _ in range(100):
        text = server.http.get("/metrics").text
        if "softmux_num_requests_running 0.0" in text and gone() == before + 1:
            return
        time.sleep(0.05)
    raise AssertionError(text)


@pytest.mark.parametrize("priority", [-10, 10])
def test_a_priority_changes_when_a_request_runs_and_nothing_of_its_answer(server: Served, priority: int) -> None:
    plain = generate(server, prompt="one two", max_tokens=6)["choices"]
    assert generate(server, prompt="one two", max_tokens=6, priority=priority)["choices"] == plain
