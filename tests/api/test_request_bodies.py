"""What is wrong with a body, told by its field, however much of it is wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from softmux.api import body as body_module
from softmux.api.findings import TYPES, VALUES, invalid
from softmux.api.multipart import read_upload
from softmux.api.openai.bodies import ChatBody, CompletionBody
from softmux.api.routers.admin import KeyBody, TenantBody, TenantChange
from softmux.api.schemas import ActivateBody, Body, ClassifyBody, GenerateBody, ShareBody
from softmux.api.tokenizer import LONG_TEXT
from softmux.api.wish import Chat
from softmux.errors import BadRequest, DeadlineExceeded, InvalidRequest, SoftmuxError


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
    ("body", "message"),
    [
        (b'{"stop": ["a", "b", "c", "d", "e", "f", "g", "h", "i"]}', "stop: send 8 entries or fewer."),
        (b'{"stop": 5}', "stop: send a string or an array."),
        (b'{"stop": [5]}', "stop.0: send a string."),
        (b'{"stop": ""}', "stop: send 1 or more characters."),
        (b'{"prompt": {}}', "prompt: send a string or an array."),
        (b'{"prompt": [1.5]}', "prompt.0: send an integer or a string."),
        (
            b'{"prompt": "a", "structured_outputs": {"json": 5}}',
            "structured_outputs.json: send an object or true or false or a string.",
        ),
        (b'{"seed": "a"}', "seed: send an integer."),
        (b'{"prompt": ["a", 5]}', "prompt.1: send a string."),
        (b'{"prompt": [1, 2, "a"]}', "prompt.2: send an integer."),
        (b'{"variables": {"bool": 5}}', "variables.bool: send a string."),
        (b'{"variables": {"Name": 5}}', "variables.Name: send a string."),
    ],
)
def test_what_a_field_takes_is_told_whole(body: bytes, message: str) -> None:
    assert message in refused(body).message


def test_nor_does_a_choice_of_words_or_an_object_tell_how_it_was_tried() -> None:
    with pytest.raises(ValidationError) as found:
        ChatBody.model_validate_json(b'{"messages": [{"role": "user", "content": "a"}], "tool_choice": 5}')
    said = "tool_choice: send 'none', 'auto' or 'required' or an object."
    assert invalid(found.value).message == said
    with pytest.raises(ValidationError) as found:
        ChatBody.model_validate_json(
            b'{"messages": [{"role": "user", "content": "a"}], "metadata": {"Alpha": 1, "Beta": 2}}'
        )
    assert invalid(found.value).message == "metadata.Alpha: send a string."


BODIES = [
    GenerateBody,
    ClassifyBody,
    CompletionBody,
    ChatBody,
    ActivateBody,
    ShareBody,
    TenantBody,
    TenantChange,
    KeyBody,
]
ODD: list[Any] = [
    None, True, 5, -5, 10**12, 1.5, "", "x", "x" * 2000, [], [5], [[]], [{}], ["x"] * 20, {}, {"x": "y" * 600},
    {"5": 1000}, {"type": "x"}, {"type": "text", "x": 1}, {"json": 5}, {"choice": []}, [{"role": "user", "content": 5}],
    [{"role": "user", "content": [{"type": "image"}]}], [{"type": "function", "function": {"name": "é"}}],
]  # fmt: skip


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_every_refusal_says_what_to_send_in_words_of_ours(model: type[Body]) -> None:
    refusals = 0
    for name, field in model.model_fields.items():
        for value in ODD:
            try:
                model.model_validate_json(json.dumps({field.alias or name: value}))
            except ValidationError as found:
                refusals += 1
                kinds = {one["type"] for one in found.errors()}
                assert kinds <= TYPES.keys() | VALUES.keys() | {"extra_forbidden", "missing", "refused"}
                message = invalid(found).message
                assert re.search(r"send |leave it out|this is not offered", message), message
                assert not re.search("Input|should", message), message
    assert refusals > len(model.model_fields)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"prompt": "a", "n": 9}', "n: send 8 or less."),
        (b'{"prompt": "a", "frequency_penalty": -3}', "frequency_penalty: send -2 or more."),
        (b'{"prompt": "a", "top_p": 0}', "top_p: send more than 0."),
        (b'{"prompt": "a", "temperature": NaN}', "temperature: send a finite number."),
        (b'{"prompt": "a", "max_tokens": 1.5}', "max_tokens: send an integer."),
        (b'{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias.x: send a string that matches ^[0-9]{1,9}$."),
        (b'{"messages": []}', "messages: send 1 or more entries."),
        (b'{"messages": [{"role": "user"}]}', "The field “messages.0.content” is missing; send it."),
        (
            b'{"prompt": "x", "response_format": {"type": "json_schema"}}',
            "The field “response_format.json_schema” is missing; send it.",
        ),
        (
            b'{"prompt": "x", "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}',
            "The field “response_format.json_schema.name” is missing; send it.",
        ),
        (
            b'{"messages": [{"role": "asistant", "content": "a"}]}',
            "messages.0.role: send 'system', 'developer', 'user', 'assistant' or 'tool'.",
        ),
        (b'{"response_format": {}}', "response_format: send an object that has 'type'."),
        (
            b'{"response_format": {"type": "xml"}}',
            "response_format: send an object whose 'type' is one of 'text', 'json_object', 'json_schema'.",
        ),
    ],
)
def test_what_a_value_may_be_is_told(body: bytes, message: str) -> None:
    assert refused(body).message == message


def test_a_developer_is_told_as_the_system() -> None:
    body = GenerateBody.model_validate_json(
        b'{"messages": [{"role": "developer", "content": "Be short."}, {"role": "user", "name": "Al", "content": "a"}]}'
    )
    assert body.given().chat == Chat(
        [{"role": "system", "content": "Be short."}, {"role": "user", "content": "a", "name": "Al"}]
    )


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
    began = time.thread_time()
    error = refused((around % inside).encode())
    assert time.thread_time() - began < 2, "seconds of work: the server would stand still"
    assert (error.status, error.code, error.param) == (422, "invalid_request", param)


def request_of(receive: Callable[[], Awaitable[Message]], kind: bytes) -> Request:
    return Request({"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind)]}, receive)


def read(body: bytes, model: type[Body] = GenerateBody) -> Body:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return asyncio.run(body_module.read_json(request_of(receive, b"application/json"), model, 1 << 20))


@pytest.mark.parametrize(
    ("model", "body", "key"),
    [
        (GenerateBody, '{"prompt": "a", "prompt": "b"}', "prompt"),
        (GenerateBody, '{"prompt": [1, 2], "max_tokens": 1, "pr\\u006fmpt": [1, 2]}', "prompt"),
        (GenerateBody, '{"prompt" : "a", "max_tokens" : 1, "max_tokens"\n:\t1}', "max_tokens"),
        (GenerateBody, '{"prompt": "a", "logit_bias": {"5": 1, "6": 1, "5": -1}}', "5"),
        (GenerateBody, '{"messages": [{"role": "user", "role": "system", "content": "a"}]}', "role"),
        (GenerateBody, '{"prompt": "a", "structured_outputs": {"json": {"enum": [1, {"b": 1, "b": 2}]}}}', "b"),
        (ClassifyBody, '{"input": "a", "input": "b"}', "input"),
        (ChatBody, '{"model": "a", "messages": [{"role": "user", "content": "a"}], "n": null, "n": null}', "n"),
        (KeyBody, '{"tenant": "acme", "role": "user", "role": "admin"}', "role"),
        (TenantChange, '{"limits": {"adapters": 5, "adapters": null}}', "adapters"),
    ],
)
def test_a_key_that_comes_twice_is_refused(model: type[Body], body: str, key: str) -> None:
    with pytest.raises(InvalidRequest, match=f"has “{key}” twice; send it once") as found:
        read(body.encode(), model)
    assert found.value.param == key


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.text(':"a\\ ', max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(':"a', max_size=3), inner, max_size=3),
    max_leaves=8,
)


def written(value: Any, doubled: int, number: Iterator[int]) -> str:
    """As JSON, in which the object of that number, of those with a key, has its first key twice."""
    if isinstance(value, list):
        return "[" + ",".join([written(item, doubled, number) for item in value]) + "]"
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    again = next(number) == doubled
    members = [f"{json.dumps(key)}:{written(item, doubled, number)}" for key, item in value.items()]
    return "{" + ",".join([*members, members[0]] if again else members) + "}"


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), _VALUES, min_size=1), st.text(':"a\\ '), st.integers(0, 99))
def test_colons_in_texts_are_no_keys_and_no_object_is_passed_over(schema: Any, text: str, doubled: int) -> None:
    body = {"prompt": text, "structured_outputs": {"json": schema}}
    objects = itertools.count()
    assert read(written(body, -1, objects).encode()) == GenerateBody.model_validate(body)
    with pytest.raises(InvalidRequest, match="twice"):
        read(written(body, doubled % next(objects), itertools.count()).encode())


@pytest.mark.parametrize("upload", [False, True])
def test_a_body_that_stops_coming_or_is_cut_off_is_given_up(monkeypatch: pytest.MonkeyPatch, upload: bool) -> None:
    monkeypatch.setattr(body_module, "_SILENT_SECONDS", 0.05)

    async def cut(then: Message | None) -> None:
        sent = iter([{"type": "http.request", "body": b"--b\r\n", "more_body": True}, *([then] if then else [])])

        async def receive() -> Message:
            for message in sent:
                return message
            await asyncio.sleep(60)
            raise AssertionError("nobody waits so long")

        if upload:
            await read_upload(request_of(receive, b"multipart/form-data; boundary=b"), 1000)
        else:
            await body_module.read_bytes(request_of(receive, b"application/json"), 1000)

    with pytest.raises(DeadlineExceeded, match="came too slowly"):
        asyncio.run(asyncio.wait_for(cut(None), 30))
    with pytest.raises(BadRequest, match="connection ended"):
        asyncio.run(asyncio.wait_for(cut({"type": "http.disconnect"}), 30))


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece comes in time, and all of them would take for ever."""
    monkeypatch.setattr(body_module, "_SILENT_SECONDS", 0.2)

    async def trickled() -> None:
        async def receive() -> Message:
            await asyncio.sleep(0.02)
            return {"type": "http.request", "body": b"x", "more_body": True}

        await body_module.read_bytes(request_of(receive, b"application/json"), 1 << 20)

    with pytest.raises(DeadlineExceeded, match="came too slowly"):
        asyncio.run(asyncio.wait_for(trickled(), 20))


def test_a_chat_is_as_long_as_its_tools_and_calls() -> None:
    """What is long is rendered and tokenized beside the loop that serves the others."""
    turns: list[dict[str, Any]] = [{"role": "user", "content": "abc"}]
    assert Chat(turns).characters == 3
    tools = [{"type": "function", "function": {"name": "f", "description": "x" * LONG_TEXT}}]
    assert Chat(turns, tools=tools).characters > LONG_TEXT
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "x" * LONG_TEXT}}}
    assert Chat([{"role": "assistant", "content": "", "tool_calls": [call]}]).characters > LONG_TEXT
