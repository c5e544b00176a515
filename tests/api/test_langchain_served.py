"""LangChain's adapters for OpenAI's API, unchanged, against a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

from support.served import Served

TURNS = [SystemMessage("Be short."), HumanMessage("The film was a gripping")]


@pytest.fixture(scope="module")
def options(server: Served) -> dict[str, Any]:
    return {
        "base_url": f"{server.url}/v1",
        "api_key": SecretStr("none"),
        "model": "prompt-tuning",
        "temperature": 0,
        "max_tokens": 6,
        "max_retries": 0,
        "extra_body": {"ignore_eos": True},
    }


def own(server: Served, **given: Any) -> str:
    body = {**given, "max_tokens": 6, "ignore_eos": True}
    return str(server.http.post("/v1/generate?task=prompt-tuning", json=body).json()["choices"][0]["text"])


def test_a_chat_model(server: Served, options: dict[str, Any]) -> None:
    chat = ChatOpenAI(**options, stream_usage=True)
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The film was a gripping"}]
    expected = own(server, messages=turns)
    reply = chat.invoke(TURNS)
    assert isinstance(reply, AIMessage)
    assert reply.content == expected
    assert reply.usage_metadata is not None
    assert reply.usage_metadata["output_tokens"] == 6
    assert reply.response_metadata["finish_reason"] == "length"
    chunks = list(chat.stream(TURNS))
    assert "".join(str(chunk.content) for chunk in chunks) == expected
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata) == 6
    assert asyncio.run(chat.ainvoke(TURNS)).content == expected
    logged = chat.bind(logprobs=True, top_logprobs=2).invoke(TURNS)
    assert len(logged.response_metadata["logprobs"]["content"]) == 6


def test_a_chat_model_goes_on_from_its_replies(options: dict[str, Any]) -> None:
    chat = ChatOpenAI(**options)
    first = chat.invoke(TURNS)
    second = chat.invoke([*TURNS, first, HumanMessage("go on")])
    assert first.usage_metadata is not None
    assert second.usage_metadata is not None
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["input_tokens"]


def test_a_text_model_and_a_batch(server: Served, options: dict[str, Any]) -> None:
    model = OpenAI(**options)
    prompts = ["a film", "a play", "a book"]
    expected = [own(server, prompt=prompt) for prompt in prompts]
    assert model.invoke(prompts[0]) == expected[0]
    assert model.batch(prompts) == expected
    assert "".join(model.stream(prompts[0])) == expected[0]


def test_what_fails_is_told_in_words(options: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="there is no task"):
        ChatOpenAI(**{**options, "model": "nothing"}).invoke(TURNS)
