"""Whatever JSON is sent, the answer is one of the contract's, and the server goes on."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from softmux.api.schemas import GenerateBody
from support.served import Served

_NUMBERS = st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([0, 1, 2, 3, 0.5, 1e308, 1e-308, -0.0])
_TEXT = st.text(max_size=20)
_JSON = st.recursive(
    st.none() | st.booleans() | _NUMBERS | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)
_FIELDS = st.sampled_from([name for name in GenerateBody.model_fields if name != "stream"])
_LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "prompt": _TEXT | st.lists(st.integers(-2, 430), max_size=5) | st.lists(_TEXT, max_size=3),
        "temperature": st.floats(0, 100),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(0, 1000),
        "min_p": st.floats(0, 1),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "repetition_penalty": st.floats(0.01, 100),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, 430).map(str), st.floats(-100, 100), max_size=3),
        "stop": _TEXT | st.lists(_TEXT, max_size=9),
        "n": st.integers(1, 3),
        "logprobs": st.integers(0, 21),
        "min_tokens": st.integers(0, 5),
        "ignore_eos": st.booleans(),
    },
)


def _answered(server: Served, body: Any, task: str | None) -> None:
    if isinstance(body, dict):
        body = {**body, "max_tokens": body.get("max_tokens", 3)}
    response = server.http.post(
        "/v1/generate",
        params={"task": task} if task else {},
        content=json.dumps(body),
        headers={"content-type": "application/json"},
    )
    assert response.status_code in (200, 400, 422), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] in ("bad_request", "invalid_request", "context_too_long")


_SETTINGS = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_SETTINGS
@given(body=_LIKELY, task=st.sampled_from([None, "prompt-tuning", "prefix-tuning"]))
def test_likely_bodies(server: Served, body: Any, task: str | None) -> None:
    _answered(server, body, task)


@_SETTINGS
@given(body=_JSON | st.dictionaries(_FIELDS, _JSON, max_size=4))
def test_unlikely_bodies(server: Served, body: Any) -> None:
    _answered(server, body, None)
