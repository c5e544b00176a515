from __future__ import annotations

import dataclasses
import json

import pytest

from softmux.cluster.call import Call


def call(method: str, target: str, body: object = None, key: str = "") -> Call:
    path, _, query = target.partition("?")
    headers = ((b"authorization", f"Bearer {key}".encode()),) if key else ()
    return Call(method, path, query, headers, b"" if body is None else json.dumps(body).encode())


@pytest.mark.parametrize(
    ("asked", "task"),
    [
        (call("POST", "/v1/generate?task=mood", {"prompt": "x"}), "mood"),
        (call("POST", "/v1/generate?seed=1&task=mood%403", {"prompt": "x"}), "mood"),
        (call("POST", "/v1/classify?task=topic", {"input": "x"}), "topic"),
        (call("POST", "/v1/completions", {"model": "mood@2", "prompt": "x"}), "mood"),
        (call("POST", "/v1/chat/completions", {"messages": [], "model": "chat"}), "chat"),
        (call("PUT", "/v1/adapters/mood"), "mood"),
        (call("GET", "/v1/adapters/mood/versions/3/files/adapter_config.json"), "mood"),
    ],
)
def test_a_request_is_routed_by_its_task_whatever_the_version(asked: Call, task: str) -> None:
    key = asked.key()
    assert key is not None
    assert key.partition("/")[2] == task


@pytest.mark.parametrize(
    "asked",
    [
        call("POST", "/v1/generate", {"prompt": "x"}),
        call("GET", "/v1/model?task"),
        call("GET", "/v1/adapters?limit=5"),
        call("GET", "/health/ready"),
        call("POST", "/v1/completions", {"prompt": "x"}),
        call("POST", "/v1/completions", [1]),
        call("POST", "/v1/completions", {"model": 3}),
        Call("POST", "/v1/completions", "", (), b"{broken"),
    ],
)
def test_what_names_no_task_may_go_anywhere(asked: Call) -> None:
    assert asked.key() is None


def test_callers_are_apart_and_their_keys_are_not_in_what_is_remembered() -> None:
    keys = {call("POST", "/v1/generate?task=mood", key=each).key() for each in ("", "one-secret", "two-secret")}
    assert len(keys) == 3
    assert not any("secret" in (key or "") for key in keys)


@pytest.mark.parametrize(
    ("method", "target", "repeatable"),
    [
        ("GET", "/v1/adapters", True),
        ("PUT", "/v1/adapters/mood", True),
        ("POST", "/v1/generate?task=mood", True),
        ("POST", "/v1/chat/completions", True),
        ("POST", "/v1/adapters/mood/activate", False),
        ("POST", "/v1/tenants/acme/keys", False),
        ("DELETE", "/v1/adapters/mood", False),
    ],
)
def test_only_what_changes_nothing_or_the_same_again_is_sent_twice(method: str, target: str, repeatable: bool) -> None:
    assert call(method, target).may_repeat() is repeatable


@pytest.mark.parametrize(
    ("said", "body", "left"),
    [
        (b"30", {"prompt": "x"}, b"18.000"),
        (None, {"prompt": "x", "timeout": 30}, b"18.000"),
        (b"30", {"timeout": 20.5}, b"8.500"),
        (b"20.5", {"timeout": 30}, b"8.500"),
        (b"5", {}, b"0.001"),
        (None, {"prompt": "x"}, None),
        (None, {"timeout": None}, None),
        # What is wrong stays as it is: a replica says so.
        (b"soon", {"timeout": 30}, b"soon"),
        (b"-1", {}, b"-1"),
        (b"nan", {}, b"nan"),
        (None, {"timeout": "30"}, None),
        (None, [30], None),
    ],
)
def test_a_deadline_counts_from_when_the_request_came(said: bytes | None, body: object, left: bytes | None) -> None:
    asked = call("POST", "/v1/generate", body, key="k")
    if said is not None:
        asked = dataclasses.replace(asked, headers=((b"x-request-timeout", said), *asked.headers))
    again = asked.after(12)
    assert dict(again.headers).get(b"x-request-timeout") == left
    assert dict(again.headers)[b"authorization"] == b"Bearer k"
    assert again.body == asked.body
