"""LiteLLM's calls, run by a Python that has it: `python litellm_calls.py URL` prints what came back, as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import litellm

TURNS = [{"role": "user", "content": "The film was a gripping"}]
PROMPT = "The film was a gripping"
SCHEMA = {
    "type": "object",
    "properties": {"good": {"type": "boolean"}},
    "required": ["good"],
    "additionalProperties": False,
}
CITY = {"type": "object", "properties": {"city": {"enum": ["Bonn", "Rome"]}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": CITY}}]
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
FAILURES: dict[str, tuple[str, dict[str, Any]]] = {
    "no task": ("openai/nothing", {}),
    "no key": ("openai/sentiment", {"api_key": "wrong"}),
    "no such field": ("openai/sentiment", {"extra_body": {"reasoning_depth": 3}}),
    "too long": ("openai/sentiment", {"max_tokens": 100_000}),
}


def calls(url: str, key: str) -> dict[str, Any]:
    """By name, what each call gave."""
    given: dict[str, Any] = {
        "api_base": f"{url}/v1",
        "api_key": key,
        "temperature": 0,
        "max_tokens": 6,
        "num_retries": 0,
    }
    chats = {"model": "openai/sentiment", "messages": TURNS, **given}
    texts = {"model": "text-completion-openai/sentiment", "prompt": PROMPT, **given}
    long = {"extra_body": {"ignore_eos": True}}
    told: dict[str, Any] = {}

    reply = litellm.completion(**chats, **long)
    told["chat"] = [reply.choices[0].message.content, reply.choices[0].finish_reason, reply.usage.completion_tokens]
    events = list(litellm.completion(**chats, **long, **WITH_USAGE))
    [usage] = [event.usage for event in events if getattr(event, "usage", None)]
    choices = [event.choices[0] for event in events if event.choices]
    [reason] = [choice.finish_reason for choice in choices if choice.finish_reason]
    text = "".join(choice.delta.content or "" for choice in choices)
    told["chat, streamed"] = [text, reason, usage.completion_tokens]
    reply = asyncio.run(litellm.acompletion(**chats, **long))
    told["chat, awaited"] = reply.choices[0].message.content

    reply = litellm.text_completion(**texts, **long)
    told["text"] = [reply.choices[0].text, reply.choices[0].finish_reason, reply.usage.completion_tokens]
    events = list(litellm.text_completion(**texts, **long, stream=True))
    told["text, streamed"] = "".join(event.choices[0].text or "" for event in events if event.choices)

    many = litellm.completion(
        **{**chats, "temperature": 1.0}, **long, n=2, logprobs=True, top_logprobs=2, seed=3, stop=["zzz"], top_p=0.9,
        frequency_penalty=0.5, presence_penalty=0.1, logit_bias={"5": -100}, user="me",
    )  # fmt: skip
    told["many"] = [len(choice.logprobs.content) for choice in many.choices]

    form = {"type": "json_schema", "json_schema": {"name": "verdict", "strict": True, "schema": SCHEMA}}
    told["form"] = litellm.completion(**{**chats, "max_tokens": 60}, response_format=form).choices[0].message.content

    asked = {**chats, "max_tokens": 100, "tools": TOOLS, "tool_choice": "required"}
    told["tools"] = [_called(litellm.completion(**asked).choices[0].message.tool_calls[0])]
    events = list(litellm.completion(**asked, stream=True))
    told["tools"] += [_called(litellm.stream_chunk_builder(events).choices[0].message.tool_calls[0])]

    for name, (model, more) in FAILURES.items():
        try:
            litellm.completion(**{**chats, "model": model, **more})
        except Exception as error:
            told[name] = [type(error).__name__, error.status_code, str(error)]  # type: ignore[attr-defined]
    return told


def _called(call: Any) -> list[Any]:
    return [call.function.name, json.loads(call.function.arguments)]


if __name__ == "__main__":
    print("\n" + json.dumps(calls(*sys.argv[1:])))
