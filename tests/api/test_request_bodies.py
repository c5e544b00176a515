"""What is wrong with a body, told by its field, however much of it is wrong."""

from __future__ import annotations

import time
from typing import Any

import pytest
from pydantic import ValidationError

from softmux.api.errors import invalid
from softmux.api.schemas import GenerateBody
from softmux.errors import SoftmuxError


def refused(body: bytes) -> SoftmuxError:
    with pytest.raises(ValidationError) as found:
        GenerateBody.model_validate_json(body)
    return invalid(found.value)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"query": 1}', "query"),
        (b'{"body": 1}', "body"),
        (b'{"path": 1}', "path"),
        (b'{"variables": {"query": 5}}', "variables"),
        (b'{"prompt": [1, "a"]}', "prompt"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', "messages"),
    ],
)
def test_the_field_is_named_whatever_it_is_called(body: bytes, param: str) -> None:
    error = refused(body)
    assert (error.status, error.code, error.param) == (422, "invalid_request", param)


@pytest.mark.parametrize(
    ("item", "around", "param"),
    [
        ("-1", '{"prompt": [%s]}', "prompt"),
        ("[]", '{"prompt": [%s]}', "prompt"),
        ("{}", '{"messages": [%s]}', "messages"),
        ("1", '{"messages": [{"role": "user", "content": [%s]}]}', "messages"),
        ("0", '{"stop": [%s]}', "stop"),
        (None, "{%s}", None),
        (None, '{"variables": {%s}}', None),
        (None, '{"logit_bias": {%s}}', None),
    ],
)
def test_a_body_of_many_errors_is_refused_at_once(item: Any, around: str, param: str | None) -> None:
    count = 200_000
    inside = ",".join(f'"x{i}": 0' for i in range(count)) if item is None else ",".join([item] * count)
    began = time.monotonic()
    error = refused((around % inside).encode())
    assert time.monotonic() - began < 1
    assert (error.status, error.code, error.param) == (422, "invalid_request", param)
