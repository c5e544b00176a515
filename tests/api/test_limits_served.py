"""Limits over HTTP, with two API processes and a worker without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from softmux.registry.registry import Registry
from softmux.registry.tenants import Limits
from support.echo_server import EchoServed
from support.waiting import wait_for

KEY = "an-admin-key-from-outside"
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServed]:
    data = tmp_path_factory.mktemp("limited") / "data"
    patient = {"limits_answer_seconds": 30}  # counts are exact while Redis is waited for
    with EchoServed(data, key=KEY, env={"SOFTMUX_ADMIN_KEY": KEY}, api_processes=2, **patient) as running:
        yield running


def tenant(server: EchoServed, name: str, **limits: int) -> dict[str, str]:
    """A new tenant's headers, once both processes know it."""

    async def made() -> str:
        registry = await Registry.open(None, server.data)
        try:
            await registry.tenants.create(name, limits=Limits(**limits), actor="t")
            return (await registry.keys.create_key(name, "publisher", actor="t"))[1]
        finally:
            await registry.close()

    headers = {"authorization": f"Bearer {asyncio.run(made())}"}

    def known() -> bool:
        return all(httpx.get(f"{server.url}/v1/model", headers=headers).status_code == 200 for _ in range(4))

    wait_for(known, 30, "both processes know the key")
    return headers


def ask(server: EchoServed, headers: dict[str, str], **body: Any) -> httpx.Response:
    """Over a connection of its own: the server hands them to its processes in turn."""
    return httpx.post(
        f"{server.url}/v1/generate", headers=headers, json={"prompt": PROMPT, "max_tokens": 2, **body}, timeout=60
    )


def test_without_limits_an_answer_has_no_such_headers(server: EchoServed) -> None:
    answer = ask(server, tenant(server, "free"))
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("x-ratelimit")]


def test_requests_are_counted_over_both_processes(server: EchoServed) -> None:
    headers = tenant(server, "few", requests_per_minute=4)
    answers = [ask(server, headers, stream=number % 2 == 1) for number in range(4)]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"4"}
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["3", "2", "1", "0"]
    assert "x-ratelimit-limit-tokens" not in answers[0].headers
    refused = ask(server, headers)
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limited"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


def test_openais_client_raises_its_own_errors_and_reads_the_headers(server: EchoServed) -> None:
    headers = tenant(server, "by-client", requests_per_minute=2, tokens_in_flight=1000)
    base = httpx.get(f"{server.url}/v1/model", headers=headers).json()["id"]
    key = headers["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
        asked: dict[str, Any] = {"model": base, "prompt": PROMPT, "max_tokens": 2}
        first = client.completions.with_raw_response.create(**asked)
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        with client.completions.with_streaming_response.create(**asked, stream=True) as streamed:
            assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(openai.RateLimitError) as limited:
            client.completions.create(**asked)
        assert (limited.value.code, limited.value.param) == ("rate_limited", "requests_per_minute")
        assert "x-should-retry" not in limited.value.response.headers
        with pytest.raises(openai.RateLimitError) as too_much:
            client.completions.create(**{**asked, "max_tokens": 2000})
        assert (too_much.value.code, too_much.value.param) == ("quota_exceeded", "tokens_in_flight")
        assert too_much.value.response.headers["x-should-retry"] == "false", "waiting is in vain"
        with pytest.raises(openai.PermissionDeniedError):
            client.get("/tenants", cast_to=object)
        with pytest.raises(openai.AuthenticationError) as unknown:
            client.with_options(api_key="sk-nobody").models.list()
        assert unknown.value.code == "unauthorized"


def test_tokens_are_charged_ahead_and_what_was_not_used_comes_back(server: EchoServed) -> None:
    headers = tenant(server, "thrifty", tokens_per_minute=100)
    first = ask(server, headers, max_tokens=60, min_tokens=0, stop=["\x05"])
    assert first.headers["x-ratelimit-remaining-tokens"] == str(100 - 63)
    used = first.json()["usage"]["total_tokens"]
    second = ask(server, headers, max_tokens=2, n=2)
    assert second.headers["x-ratelimit-remaining-tokens"] == str(100 - used - 7)
    refused = ask(server, headers, max_tokens=90)
    assert refused.status_code == 429
    beyond = ask(server, headers, max_tokens=200)
    assert beyond.status_code == 429
    assert beyond.json()["error"]["code"] == "quota_exceeded"
    assert "lower max_tokens" in beyond.json()["error"]["message"]


def test_tokens_in_flight_are_those_that_run(server: EchoServed) -> None:
    headers = tenant(server, "slow", tokens_in_flight=450)
    with httpx.stream(
        "POST",
        f"{server.url}/v1/generate",
        headers=headers,
        json={"prompt": [*PROMPT, 253], "max_tokens": 400, "stream": True},  # it runs for as long as it is read
        timeout=60,
    ) as running:
        assert running.status_code == 200
        lines = running.iter_lines()  # kept: to drop it is to leave the stream
        next(lines)
        refused = ask(server, headers, max_tokens=100)
        assert refused.status_code == 429
        assert "tokens_in_flight" in refused.json()["error"]["message"]
        assert ask(server, headers, max_tokens=40).status_code == 200
    for _ in range(200):  # the client has left the stream: its tokens are free again
        if ask(server, headers, max_tokens=440).status_code == 200:
            break
    else:
        raise AssertionError("what was in flight never came back")


def test_refusals_are_counted(server: EchoServed) -> None:
    headers = tenant(server, "counted", requests_per_minute=0)
    assert ask(server, headers).json()["error"]["code"] == "quota_exceeded"
    assert 'softmux_limit_refusals_total{limit="requests_per_minute"}' in server.http.get("/metrics").text
