"""OpenAI's own client against a real server: each feature, whole and as a stream, on the base model, a task, and one
version of it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from support.served import Served, upload_parts

PROMPT = "The film was a gripping"
TURNS: list[Any] = [{"role": "user", "content": PROMPT}]
TOKENS = 8
LONG = {"ignore_eos": True}


@dataclass
class Told:
    """A reply, whichever way it came: by choice its text, tokens and why it ended, and what was counted."""

    texts: dict[int, str] = field(default_factory=dict)
    reasons: dict[int, str | None] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    usage: Any = None
    adapter: Any = None
    head: tuple[str, str, str, int] = ("", "", "", 0)

    def same(self, other: Told) -> bool:
        """But for the rounding of a prompt that was read alone, or found in the cache."""
        mine, theirs = ({**vars(told), "head": None, "usage": None} for told in (self, other))
        return near(mine, theirs)


def near(mine: Any, theirs: Any) -> bool:
    """Equal, floats to 1e-4."""
    if isinstance(mine, BaseModel):
        return type(mine) is type(theirs) and near(vars(mine), vars(theirs))
    if isinstance(mine, dict):
        return mine.keys() == theirs.keys() and all(near(value, theirs[key]) for key, value in mine.items())
    if isinstance(mine, list | tuple):
        return len(mine) == len(theirs) and all(map(near, mine, theirs))
    return bool(mine == pytest.approx(theirs, abs=1e-4) if isinstance(mine, float) else mine == theirs)


def _choice(told: Told, index: int, text: str | None, reason: str | None, logprobs: Any, ids: Any) -> None:
    told.texts[index] = told.texts.get(index, "") + (text or "")
    told.reasons[index] = reason
    content = getattr(logprobs, "content", None)
    rows = content if content is not None else list(zip(*vars_of(logprobs), strict=True)) if logprobs else []
    told.logprobs.setdefault(index, []).extend(rows)
    told.token_ids.setdefault(index, []).extend(ids or [])


def vars_of(logprobs: Any) -> list[list[Any]]:
    return [logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset]


def read_whole(reply: Completion | ChatCompletion) -> Told:
    told = Told(
        usage=reply.usage,
        adapter=reply.adapter,  # type: ignore[union-attr]
        head=(reply.object, reply.model, reply.system_fingerprint or "", reply.created),
    )
    for choice in reply.choices:
        text = choice.text if isinstance(reply, Completion) else choice.message.content  # type: ignore[union-attr]
        if isinstance(reply, ChatCompletion):
            assert choice.message.role == "assistant"  # type: ignore[union-attr]
        _choice(told, choice.index, text, choice.finish_reason, choice.logprobs, getattr(choice, "token_ids", None))
    return told


def read_stream(events: list[Any]) -> Told:
    """Checks on the way that the events are in OpenAI's order."""
    first = events[0]
    told = Told(adapter=first.adapter, head=(first.object, first.model, first.system_fingerprint or "", first.created))
    ended: set[int] = set()
    for place, event in enumerate(events):
        assert (event.object, event.model, event.system_fingerprint, event.created) == told.head
        assert event.id == first.id
        if not event.choices:
            assert place == len(events) - 1, "usage is last, alone"
            assert event.usage is not None
            told.usage = event.usage
            continue
        assert event.usage is None
        [choice] = event.choices
        assert choice.index not in ended
        text = choice.text if isinstance(event, Completion) else choice.delta.content
        if isinstance(event, ChatCompletionChunk):
            assert (choice.delta.role == "assistant") is (choice.index not in told.texts)
        _choice(told, choice.index, text, choice.finish_reason, choice.logprobs, getattr(choice, "token_ids", None))
        if choice.finish_reason is not None:
            ended.add(choice.index)
    assert ended == set(told.texts), "each choice says why it ended"
    return told


@dataclass(frozen=True)
class Feature:
    """What is sent, and what must hold of the reply."""

    chat: dict[str, Any]
    completion: dict[str, Any]
    holds: Callable[[Told, Told], object] = lambda told, plain: None
    """Of the reply, and of the plain one to the same prompt."""
    as_own: bool = False
    """softmux's own route answers the same."""


def as_own(**sent: Any) -> Feature:
    return Feature(sent, sent, as_own=True)


def both(holds: Callable[[Told, Told], object], **sent: Any) -> Feature:
    return Feature(sent, sent, holds)


def _n(told: Told, plain: Told) -> None:
    assert sorted(told.texts) == [0, 1, 2]
    assert len(set(told.texts.values())) > 1, "samples differ"
    assert told.usage.prompt_tokens == plain.usage.prompt_tokens, "a prompt counts once"


def _stopped(told: Told, plain: Told) -> None:
    assert told.reasons == {0: "stop"}
    assert told.texts[0] == plain.texts[0][: len(told.texts[0])]
    assert told.usage.completion_tokens < TOKENS


def _stopped_by_token(told: Told, plain: Told) -> None:
    ids, stop = plain.token_ids[0], plain.token_ids[0][4]
    assert told.reasons == {0: "stop"}
    assert told.token_ids[0] == ids[: ids.index(stop) + 1]
    assert told.usage.completion_tokens == len(told.token_ids[0]) < TOKENS


def _logprobs(told: Told, plain: Told) -> None:
    assert len(told.logprobs[0]) == TOKENS
    for row in told.logprobs[0]:
        if isinstance(row, tuple):
            token, value, best, _ = row
            assert best[token] == value == max(best.values())
            assert 3 <= len(best) <= 4
        else:
            assert row.top_logprobs[0].logprob == row.logprob
            assert len(row.top_logprobs) == 3
    if not isinstance(told.logprobs[0][0], tuple):
        spelled = b"".join(bytes(row.bytes) for row in told.logprobs[0])
        assert spelled.decode("utf-8", errors="replace") == told.texts[0]


def _counted(told: Told, plain: Told) -> None:
    usage = told.usage
    assert usage.completion_tokens == TOKENS
    assert usage.total_tokens == usage.prompt_tokens + TOKENS
    assert 0 <= usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1, "all but the last is cached by now"
    assert usage.virtual_tokens == (0 if told.adapter is None else plain.usage.virtual_tokens)


def _same(told: Told, plain: Told) -> None:
    assert told.texts == plain.texts


def _ids(told: Told, plain: Told) -> None:
    assert len(told.token_ids[0]) == TOKENS
    assert told.texts == plain.texts


def _biased(told: Told, plain: Told) -> None:
    assert set(told.token_ids[0]) == {65}


FEATURES = {
    "plain": both(_same),
    "usage": both(_counted),
    "n": both(_n, n=3, temperature=1.0, seed=3),
    "seed": as_own(temperature=1.0, seed=11),
    "stop": both(_stopped, stop=["\x00never", "*"]),
    "stop_token_ids": both(_stopped_by_token, extra_body={"stop_token_ids": [-1], "return_token_ids": True}),
    "logprobs": Feature({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}, _logprobs),
    "logit_bias": both(_biased, logit_bias={"65": 100}, extra_body={"return_token_ids": True}),
    "frequency_penalty": as_own(temperature=1.0, seed=5, frequency_penalty=2.0, presence_penalty=1.0),
    "repetition_penalty": as_own(extra_body={"repetition_penalty": 5.0}),
    "top_p": both(_same, temperature=1.0, top_p=1e-9, seed=1),
    "top_k": both(_same, temperature=1.0, seed=1, extra_body={"top_k": 1}),
    "no top_k": both(_same, extra_body={"top_k": -1}),
    "min_p": both(_same, temperature=1.0, seed=1, extra_body={"min_p": 1.0}),
    "return_token_ids": both(_ids, extra_body={"return_token_ids": True}),
    "user": both(_same, user="someone"),
    "max_completion_tokens": Feature(
        {"max_completion_tokens": TOKENS}, {"extra_body": {"max_completion_tokens": TOKENS}}, _same
    ),
}
MODELS = ("base", "prompt-tuning", "prefix-tuning@1")


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def base_id(server: Served) -> str:
    return str(server.http.get("/v1/model").json()["id"])


def sent(route: str, feature: Feature, plain: Told | None) -> dict[str, Any]:
    """The call's arguments: greedy and of one length, where the feature does not say otherwise."""
    own = feature.chat if route == "chat" else feature.completion
    extra = {**LONG, **own.get("extra_body", {})}
    if plain is not None and "stop" in own:
        own = {**own, "stop": [own["stop"][0], plain.texts[0][3:5]]}
    if plain is not None and "stop_token_ids" in extra:
        extra["stop_token_ids"] = [plain.token_ids[0][4]]
    put = {"temperature": 0.0, "max_tokens": TOKENS} | own | {"extra_body": extra}
    if "max_completion_tokens" in put or "max_completion_tokens" in extra:
        del put["max_tokens"]
    return put | ({"messages": TURNS} if route == "chat" else {"prompt": PROMPT})


@pytest.fixture(scope="module")
def plain_of(client: openai.OpenAI) -> Callable[[str, str], Told]:
    """The plain reply of a route and a model, which is asked for once."""
    feature = both(_ids, extra_body={"return_token_ids": True})
    return functools.cache(lambda route, model: ask(client, route, model, False, sent(route, feature, None)))


def ask(client: openai.OpenAI, route: str, model: str, stream: bool, arguments: dict[str, Any]) -> Told:
    create: Any = client.chat.completions.create if route == "chat" else client.completions.create
    if not stream:
        return read_whole(create(model=model, **arguments))
    return read_stream(list(create(model=model, stream=True, stream_options={"include_usage": True}, **arguments)))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("route", ["completions", "chat"])
@pytest.mark.parametrize("feature", FEATURES)
def test_the_official_client(
    server: Served,
    client: openai.OpenAI,
    plain_of: Callable[[str, str], Told],
    base_id: str,
    feature: str,
    route: str,
    stream: bool,
    model: str,
) -> None:
    name = base_id if model == "base" else model
    asked = FEATURES[feature]
    plain = plain_of(route, name)
    arguments = sent(route, asked, plain)
    told = ask(client, route, name, stream, arguments)
    kind = {"chat": "chat.completion.chunk" if stream else "chat.completion"}.get(route, "text_completion")
    assert told.head[:2] == (kind, name)
    if model == "base":
        assert told.adapter is None
        assert told.head[2].startswith("sha256:")
    else:
        assert told.adapter["task"] == model.partition("@")[0]
        assert told.adapter["digest"] == told.head[2]
    asked.holds(told, plain)
    if asked.as_own:
        own = {**{name: value for name, value in arguments.items() if name != "extra_body"}, **arguments["extra_body"]}
        params = {} if model == "base" else {"task": model}
        reply = server.http.post("/v1/generate", params=params, json=own).json()
        assert told.texts == {choice["index"]: choice["text"] for choice in reply["choices"]}


@pytest.mark.parametrize("route", ["completions", "chat"])
def test_every_event_tells_what_was_used_so_far_where_that_is_asked_for(
    client: openai.OpenAI, base_id: str, route: str
) -> None:
    create: Any = client.chat.completions.create if route == "chat" else client.completions.create
    given: dict[str, Any] = {"messages": TURNS} if route == "chat" else {"prompt": PROMPT}
    asked = {"model": base_id, "max_tokens": TOKENS, "n": 2, "stream": True, "extra_body": LONG, **given}
    events = list(create(**asked, stream_options={"include_usage": True, "continuous_usage_stats": True}))
    counts = [event.usage.completion_tokens for event in events]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 2 * TOKENS
    assert [len(event.choices) for event in events] == [1] * (len(events) - 1) + [0]
    assert events[0].usage.prompt_tokens == events[-1].usage.prompt_tokens > 0
    with pytest.raises(openai.UnprocessableEntityError, match="set include_usage to true") as refusal:
        create(**asked, stream_options={"continuous_usage_stats": True})
    assert refusal.value.param == "stream_options"


def test_the_asynchronous_client_does_the_same(server: Served, client: openai.OpenAI, base_id: str) -> None:
    feature = FEATURES["logprobs"]

    async def ask_async(route: str, stream: bool) -> Told:
        arguments = sent(route, feature, None)
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
            create: Any = made.chat.completions.create if route == "chat" else made.completions.create
            if not stream:
                return read_whole(await create(model="prompt-tuning", **arguments))
            options = {"stream": True, "stream_options": {"include_usage": True}}
            return read_stream([event async for event in await create(model="prompt-tuning", **options, **arguments)])

    for route in ("completions", "chat"):
        for stream in (False, True):
            told = asyncio.run(ask_async(route, stream))
            assert told.same(ask(client, route, "prompt-tuning", stream, sent(route, feature, None)))


def test_replies_are_those_of_softmuxs_own_route(client: openai.OpenAI, server: Served, base_id: str) -> None:
    body = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}
    for task in ("prompt-tuning", "prefix-tuning", None):
        name = base_id if task is None else task
        params = {} if task is None else {"task": task}
        by_prompt = server.http.post("/v1/generate", params=params, json={**body, "prompt": PROMPT}).json()
        by_chat = server.http.post("/v1/generate", params=params, json={**body, "messages": TURNS}).json()
        arguments: dict[str, Any] = {"model": name, "max_tokens": 12, "temperature": 0, "extra_body": LONG}
        completion = client.completions.create(prompt=PROMPT, **arguments)
        chat = client.chat.completions.create(messages=TURNS, **arguments)
        assert completion.choices[0].text == by_prompt["choices"][0]["text"]
        assert chat.choices[0].message.content == by_chat["choices"][0]["text"]
        assert completion.adapter == by_prompt["adapter"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_prompts_of_every_kind(client: openai.OpenAI, stream: bool) -> None:
    arguments: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4, "extra_body": LONG}

    def of(prompt: Any) -> dict[int, str]:
        return ask(client, "completions", "prompt-tuning", stream, {**arguments, "prompt": prompt}).texts

    ids = [[5, 6, 7], [9, 10]]
    one, two = (of(each)[0] for each in ids)
    assert of(ids) == {0: one, 1: two}
    assert of(["a film", "a play"]) == {0: of("a film")[0], 1: of(["a play"])[0]}
    both_twice = ask(client, "completions", "prompt-tuning", stream, {**arguments, "prompt": ids, "n": 2})
    assert both_twice.texts == {0: one, 1: one, 2: two, 3: two}


def test_a_conversation_goes_on_from_its_own_replies(client: openai.OpenAI, base_id: str) -> None:
    turns: list[Any] = [{"role": "developer", "content": "Be short."}, *TURNS]
    first = client.chat.completions.create(model=base_id, messages=turns, max_tokens=4, temperature=0)
    turns += [
        first.choices[0].message,
        {"role": "user", "content": [{"type": "text", "text": "go "}, {"type": "text", "text": "on"}]},
    ]
    second = client.chat.completions.create(model=base_id, messages=turns, max_tokens=4, temperature=0)
    as_system = [{"role": "system", "content": "Be short."}, *turns[1:3], {"role": "user", "content": "go on"}]
    third = client.chat.completions.create(model=base_id, messages=as_system, max_tokens=4, temperature=0)
    assert second.choices[0].message.content == third.choices[0].message.content
    assert second.usage is not None
    assert third.usage is not None
    assert second.usage.prompt_tokens == third.usage.prompt_tokens > (first.usage.prompt_tokens if first.usage else 0)


def test_a_task_with_a_template_takes_its_slots_values(
    client: openai.OpenAI, server: Served, adapters: dict[str, Path]
) -> None:
    template = json.dumps({"template": "{p:2}Name {country} in {p:3}"}).encode()
    parts = upload_parts(adapters["prompt-tuning"], **{"softmux.json": template})
    assert server.http.put("/v1/adapters/templated", files=parts).status_code == 201
    arguments: dict[str, Any] = {"model": "templated", "temperature": 0, "max_tokens": 6, "extra_body": LONG}
    question: Any = {"role": "user", "content": "France"}
    try:
        filled = client.completions.create(prompt="France", **arguments)
        named = client.completions.create(
            prompt=None, **arguments | {"extra_body": {**LONG, "variables": {"country": "France"}}}
        )
        asked = client.chat.completions.create(messages=[question], **arguments)
        assert filled.choices[0].text == named.choices[0].text == asked.choices[0].message.content
        body = {"prompt": "France", "max_tokens": 6, "ignore_eos": True}
        own = server.http.post("/v1/generate?task=templated", json=body).json()
        assert own["choices"][0]["text"] == filled.choices[0].text
        assert asked.usage is not None
        assert asked.usage.prompt_tokens_details is not None
        assert own["usage"]["cached_tokens"] == own["usage"]["prompt_tokens"] + 5 - 1
        assert asked.usage.prompt_tokens_details.cached_tokens == own["usage"]["prompt_tokens"], "learned ones end it"
        with pytest.raises(openai.UnprocessableEntityError) as refusal:
            client.chat.completions.create(messages=[{"role": "system", "content": "Be short."}, question], **arguments)
        assert refusal.value.param == "messages"
        extra = {"chat_template_kwargs": {"enable_thinking": False}}
        with pytest.raises(openai.UnprocessableEntityError, match="no chat template is rendered") as refusal:
            client.chat.completions.create(messages=[question], **arguments | {"extra_body": extra})
        assert refusal.value.param == "chat_template_kwargs"
    finally:
        server.http.delete("/v1/adapters/templated")


def test_the_defaults_are_openais(client: openai.OpenAI, base_id: str) -> None:
    completion = client.completions.create(model=base_id, prompt=PROMPT, seed=1, extra_body=LONG)
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 16
    warm = client.completions.create(model=base_id, prompt=PROMPT, seed=1, temperature=1, extra_body=LONG)
    assert completion.choices[0].text == warm.choices[0].text
    nearly_full: Any = [{"role": "user", "content": "q" * 450}]
    chat = client.chat.completions.create(model=base_id, messages=nearly_full, temperature=0, extra_body=LONG)
    assert chat.usage is not None
    assert chat.usage.total_tokens == 512, "a chat's answer may fill the context"
    assert chat.choices[0].finish_reason == "length"
    null: Any = None
    nothing = client.completions.create(
        model=base_id, prompt=PROMPT, seed=1, temperature=null, max_tokens=null, stop=null, n=null, logprobs=null,
        echo=False, best_of=1, suffix=null, extra_body=LONG,
    )  # fmt: skip
    assert nothing.choices[0].text == completion.choices[0].text


def test_models_are_the_base_and_the_callers_tasks(client: openai.OpenAI, base_id: str) -> None:
    listed = list(client.models.list())
    assert listed[0].id == base_id
    names = [model.id for model in listed[1:]]
    assert {"prompt-tuning", "prefix-tuning", "p-tuning-lstm"} <= set(names)
    assert names == sorted(names)
    assert all(model.object == "model" and model.created > 1_700_000_000 and model.owned_by for model in listed)
    for name in (base_id, "prompt-tuning", "prompt-tuning@1"):
        found = client.models.retrieve(name)
        assert found.id == name
        assert (found.adapter is None) is (name == base_id)  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such/task")
    page = client.models.list(extra_query={"limit": 2})
    assert [model.id for model in page.data] == [base_id, names[0]]
    assert page.has_more is True  # type: ignore[attr-defined]
    rest = client.models.list(extra_query={"after": names[0]})
    assert [model.id for model in rest.data] == names[1:]
    assert [model.id for model in client.models.list(extra_query={"after": base_id}).data] == names


IMAGE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
REFUSED = [
    ("completions", {"echo": True}, "echo"),
    ("completions", {"suffix": "the end"}, "suffix"),
    ("completions", {"best_of": 2}, "best_of"),
    ("completions", {"logprobs": 21}, "logprobs"),
    ("completions", {"n": 9}, "n"),
    ("completions", {"stop": ["x"] * 9}, "stop"),
    ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
    ("completions", {"extra_body": {"use_beam_search": True}}, "use_beam_search"),
    ("completions", {"extra_body": {"guided_json": {}}}, "guided_json"),
    ("completions", {"extra_body": {"min_tokens": 20}}, "min_tokens"),
    ("completions", {"extra_body": {"max_completion_tokens": 5}, "max_tokens": 4}, "max_tokens"),
    ("completions", {"extra_body": {"stop_token_ids": list(range(65))}}, "stop_token_ids"),
    ("completions", {"prompt": [[1], []]}, "prompt"),
    ("chat", {"top_logprobs": 2}, "top_logprobs"),
    ("chat", {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ("chat", {"tool_choice": "auto"}, "tool_choice"),
    ("chat", {"response_format": {"type": "yaml"}}, "response_format"),
    ("chat", {"store": True}, "store"),
    ("chat", {"service_tier": "flex"}, "service_tier"),
    ("chat", {"modalities": ["text", "audio"]}, "modalities"),
    ("chat", {"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ("chat", {"reasoning_effort": "high"}, "reasoning_effort"),
    ("chat", {"prediction": {"type": "content", "content": "a"}}, "prediction"),
    ("chat", {"web_search_options": {}}, "web_search_options"),
    ("chat", {"extra_body": {"prompt": "a"}}, "prompt"),
    ("chat", {"messages": [{"role": "user", "content": [IMAGE]}]}, "messages"),
    ("chat", {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "messages"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, "chat_template_kwargs"),
    ("chat", {"extra_body": {"chat_template_kwargs": {"enable_thinking": {}}}}, "chat_template_kwargs"),
    ("completions", {"extra_body": {"chat_template_kwargs": {}}}, "chat_template_kwargs"),
    ("completions", {"extra_body": {"top_k": -2}}, "top_k"),
]  # fmt: skip


@pytest.mark.parametrize(("route", "more", "param"), REFUSED, ids=[f"{route}-{param}" for route, _, param in REFUSED])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_not_offered_is_refused_by_name(
    client: openai.OpenAI, base_id: str, route: str, more: dict[str, Any], param: str, stream: bool
) -> None:
    create: Any = client.chat.completions.create if route == "chat" else client.completions.create
    given = {"messages": TURNS} if route == "chat" else {"prompt": PROMPT}
    if stream and param == "stream_options":
        more = {"stream_options": {"include_obfuscation": True}}
    with pytest.raises(openai.UnprocessableEntityError) as refusal:
        create(**{"model": base_id, **given, **more, "stream": stream})
    assert (refusal.value.code, refusal.value.param) == ("invalid_request", param)


ERRORS: list[tuple[str, dict[str, Any], type[openai.APIStatusError], str, str | None]] = [
    ("an unknown task", {"model": "nothing"}, openai.NotFoundError, "task_not_found", "model"),
    ("an unknown version", {"model": "prompt-tuning@7"}, openai.NotFoundError, "version_not_found", "model"),
    ("no version", {"model": "prompt-tuning@x"}, openai.NotFoundError, "version_not_found", "model"),
    ("no model", {"model": ""}, openai.UnprocessableEntityError, "invalid_request", "model"),
    ("tasks that do not combine", {"model": "prompt-tuning,prefix-tuning"}, openai.UnprocessableEntityError,
     "invalid_request", "model"),
    ("too long", {"max_tokens": 100_000}, openai.BadRequestError, "context_too_long", "prompt"),
    ("too late", {"extra_body": {"timeout": 1e-9}}, openai.APIStatusError, "deadline_exceeded", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "kind", "code", "param"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
@pytest.mark.parametrize("route", ["completions", "chat"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors_are_raised_as_the_clients_classes(
    client: openai.OpenAI,
    route: str,
    stream: bool,
    more: dict[str, Any],
    kind: type[openai.APIStatusError],
    code: str,
    param: str | None,
) -> None:
    create: Any = client.chat.completions.create if route == "chat" else client.completions.create
    given = {"messages": TURNS} if route == "chat" else {"prompt": PROMPT}
    with pytest.raises(kind) as failure:
        create(**{"model": "prompt-tuning", **given, **more, "stream": stream})
    assert (failure.value.code, failure.value.param) == (code, param)  # type: ignore[attr-defined]
