"""OpenAI's client calls tools of a model whose chat template takes them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from support.served import Served, make_model
from support.tokenizers_made import CHAT_WITH_TOOLS

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Bonn", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
NAMED = {"type": "function", "function": {"name": "weather"}}
TURNS: list[Any] = [{"role": "user", "content": "Will it rain?"}]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    folder = tmp_path_factory.mktemp("tools")
    make_model(folder / "model")
    (folder / "model" / "chat_template.jinja").write_text(CHAT_WITH_TOOLS)
    with Served(folder / "model", folder / "data") as server:
        yield openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def model_of(client: openai.OpenAI) -> str:
    return client.models.list().data[0].id


def ask(client: openai.OpenAI, **more: Any) -> Any:
    create: Any = client.chat.completions.create
    return create(model=model_of(client), messages=TURNS, max_tokens=160, tools=[WEATHER, CLOCK], seed=1, **more)


def test_a_call_that_must_come_fits_its_tool_whole_and_streamed(client: openai.OpenAI) -> None:
    for choice in ("required", NAMED):
        [told] = ask(client, tool_choice=choice).choices
        assert told.finish_reason == "tool_calls"
        assert told.message.content is None
        [call] = told.message.tool_calls
        arguments = json.loads(call.function.arguments)
        if choice == NAMED or call.function.name == "weather":
            assert call.function.name == "weather"
            assert arguments["city"] in ("Bonn", "Rome")
            assert 1 <= arguments["days"] <= 9
        else:
            assert (call.function.name, arguments) == ("clock", {})
        chunks = [chunk.choices[0] for chunk in ask(client, tool_choice=choice, stream=True) if chunk.choices]
        streamed = [call for chunk in chunks for call in chunk.delta.tool_calls or ()]
        assert [(one.index, one.function.name, one.function.arguments) for one in streamed] == [
            (0, call.function.name, call.function.arguments)
        ]
        assert "".join(chunk.delta.content or "" for chunk in chunks) == ""
        assert chunks[-1].finish_reason == "tool_calls"


def test_what_was_called_and_answered_goes_on(client: openai.OpenAI) -> None:
    [told] = ask(client, tool_choice=NAMED).choices
    turns = [
        *TURNS,
        told.message.model_dump(exclude_none=True),
        {"role": "tool", "content": "sunny", "tool_call_id": told.message.tool_calls[0].id},
    ]
    create: Any = client.chat.completions.create
    reply = create(model=model_of(client), messages=turns, tools=[WEATHER], max_tokens=4, tool_choice="auto")
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert not reply.choices[0].message.tool_calls


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
        ({"tool_choice": "required", "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(client: openai.OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refusal:
        ask(client, **more)
    assert refusal.value.param == param


def test_a_tool_whose_schema_can_not_be_followed_is_told(client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "not": {}}}}
    create: Any = client.chat.completions.create
    with pytest.raises(openai.UnprocessableEntityError, match="not") as refusal:
        create(model=model_of(client), messages=TURNS, tools=[tool], tool_choice="required")
    assert refusal.value.param == "tools"
