"""The bodies of OpenAI's routes: its names and its defaults, the fields that vLLM adds, and softmux's own.

A field that is null counts as one that was not sent, as OpenAI's clients mean it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from pydantic import ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from softmux.api.openai.fields import Refused
from softmux.api.openai.messages import ChatMessage
from softmux.api.openai.tools import MOST_TOOLS, Tool, ToolChoice, calls_grammar, check_tools, offered
from softmux.api.queries import LONGEST_TASK
from softmux.api.schemas import Body, LogprobCount, Many, NewTokens, Sampling, TokenId, prompts_of
from softmux.api.wish import Chat, Given, Wish
from softmux.errors import InvalidRequest

MAX_STOP_TOKENS = 64
COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` in completions."""

Label = Annotated[str, StringConstraints(max_length=512)]
TemplateValue = bool | int | FiniteFloat | Label | None


def _nullable(schema: dict[str, Any]) -> None:
    """Says that every field which need not be sent may be null."""
    needed = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        if name in needed or "enum" in field or field.get("type") == "null":
            continue
        if "anyOf" in field:
            if {"type": "null"} not in field["anyOf"]:
                field["anyOf"].append({"type": "null"})
            continue
        about = {key: field.pop(key) for key in ("title", "description", "default") if key in field}
        inner = dict(field)
        field.clear()
        field.update(about, anyOf=[inner, {"type": "null"}])


class StreamOptions(Body):
    include_usage: bool = Field(default=False, description="One more event at the end, with `usage` and no choices.")
    continuous_usage_stats: bool = Field(default=False, description="vLLM's: every event has the `usage` so far.")
    include_obfuscation: Annotated[Literal[False] | None, Refused("events are not padded")] = None


class OpenAIBody(Sampling):
    """What both generating routes take."""

    model_config = ConfigDict(json_schema_extra=_nullable)

    model: Annotated[
        str,
        StringConstraints(min_length=1, max_length=LONGEST_TASK),
        Field(description="A task, `task@version`, several tasks by commas, or the base model's id."),
    ]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = Field(default=None, description="OpenAI's newer name of `max_tokens`.")
    temperature: Annotated[FiniteFloat, Field(ge=0, le=100, description="0 is greedy.")] = 1.0
    stop_token_ids: Annotated[list[TokenId], Field(max_length=MAX_STOP_TOKENS)] | None = Field(
        default=None, description="End the text as stop strings do."
    )
    stream_options: StreamOptions | None = None
    return_token_ids: bool = Field(default=False, description="Adds `token_ids` to every choice.")
    user: Label | None = Field(default=None, description="Taken, and not used.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            return {name: value for name, value in data.items() if value is not None}
        return data

    @property
    def includes_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def tells_usage(self) -> bool:
        """In every event of a stream."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def wish_of(self, *, logprobs: int | None, default_tokens: int | None) -> Wish:
        """`default_tokens` None: as many new tokens as the context has left. Raises `InvalidRequest` where fields
        contradict each other."""
        asked = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(asked) > 1:
            raise InvalidRequest(
                "max_tokens and max_completion_tokens are one thing, and differ; send one of them.", param="max_tokens"
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is for streams; set stream, or leave it out.", param="stream_options")
        if self.tells_usage and not self.includes_usage:
            raise InvalidRequest(
                "continuous_usage_stats is for include_usage; set include_usage to true, too.", param="stream_options"
            )
        tokens = next(iter(asked), default_tokens)
        return Wish(
            self.sampling(max_tokens=1 if tokens is None else tokens, logprobs=logprobs),
            self.n,
            self.stops,
            frozenset(self.stop_token_ids or ()),
            self.priority,
            to_the_end=tokens is None,
        )


class CompletionBody(OpenAIBody):
    """`POST /v1/completions`."""

    prompt: str | Many[TokenId] | Many[str] | Many[Many[TokenId]] | None = Field(
        default=None, description="Text, token ids, or a batch of either."
    )
    variables: dict[str, str] | None = Field(default=None, description="Values of the slots of a task's template.")
    logprobs: LogprobCount | None = None
    best_of: int | None = Field(default=None, description="As many as `n` alone: no choice is dropped.")
    echo: Annotated[Literal[False] | None, Refused("the text is what is new; put the prompt before it yourself")] = None
    suffix: Annotated[None, Refused("the model goes on from the prompt alone")] = None

    def wish(self) -> Wish:
        if self.best_of is not None and self.best_of != self.n:
            raise InvalidRequest(
                f"best_of ({self.best_of}) other than n ({self.n}) is not offered; ask for n, with logprobs, and "
                "choose yourself.",
                param="best_of",
            )
        return self.wish_of(logprobs=self.logprobs, default_tokens=COMPLETION_TOKENS)

    def given(self) -> Given:
        return Given(prompts_of(self.prompt), variables=self.variables)


class ChatBody(OpenAIBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[Many[ChatMessage], Field(min_length=1)] = Field(
        description="Rendered with the model's own chat template."
    )
    logprobs: bool = Field(default=False, description="Tells each token's log probability.")
    top_logprobs: LogprobCount | None = Field(default=None, description="With `logprobs`: so many likeliest, too.")
    metadata: Annotated[dict[str, Label], Field(max_length=16)] | None = Field(
        default=None, description="Taken, and not used."
    )
    prompt_cache_key: Label | None = Field(default=None, description="Taken, and not used: every prefix is cached.")
    safety_identifier: Label | None = Field(default=None, description="Taken, and not used.")
    store: Annotated[Literal[False] | None, Refused("no reply is kept")] = None
    service_tier: Annotated[
        Literal["auto", "default"] | None, Refused("there is one tier; `priority` orders your own requests")
    ] = None
    modalities: Annotated[list[Literal["text"]] | None, Refused("the model writes text")] = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = Field(
        default=None, description="Told to the model by its chat template, where that takes tools."
    )
    tool_choice: ToolChoice | None = Field(
        default=None, description="`required` and a named tool make the reply a call; `auto` lets the model choose."
    )
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Field(max_length=16)] | None = Field(
        default=None, description="vLLM's: values of the chat template's own variables, such as `enable_thinking`."
    )
    parallel_tool_calls: bool | None = Field(
        default=None, description="True: a reply that must be a call may be several; false: of several one is told."
    )
    functions: Annotated[None, Refused("send tools, and tool_choice")] = None
    function_call: Annotated[None, Refused("send tools, and tool_choice")] = None
    audio: Annotated[None, Refused("the model writes text")] = None
    moderation: Annotated[None, Refused("nothing is moderated")] = None
    prediction: Annotated[None, Refused("no text is predicted from without")] = None
    prompt_cache_options: Annotated[None, Refused("every prefix is cached, for as long as there is room")] = None
    prompt_cache_retention: Annotated[None, Refused("a prefix is cached for as long as there is room")] = None
    reasoning_effort: Annotated[None, Refused("the model answers as it was trained to")] = None
    verbosity: Annotated[None, Refused("say in a message how long the answer may be")] = None
    web_search_options: Annotated[None, Refused("nothing is looked up")] = None

    def wish(self) -> Wish:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is for logprobs; set logprobs to true, too.", param="top_logprobs")
        check_tools(self.tools or (), self.tool_choice)
        if self.parallel_tool_calls and not self.tools:
            raise InvalidRequest("parallel_tool_calls is for tools; send tools, or leave it out.", param="tools")
        wish = self.wish_of(logprobs=(self.top_logprobs or 0) if self.logprobs else None, default_tokens=None)
        calls = calls_grammar(self.tools or (), self._choice, several=bool(self.parallel_tool_calls))
        if calls is None:
            return wish
        if (other := wish.sampling.grammar) is not None:
            raise InvalidRequest(
                f"tool_choice makes the reply a call, and {other.param} says that it looks otherwise; leave one out.",
                param="tool_choice",
            )
        if self.ignore_eos or self.min_tokens:
            what = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InvalidRequest(f"A call ends where it is whole; leave {what} out.", param=what)
        return replace(wish, sampling=msgspec.structs.replace(wish.sampling, grammar=calls))

    @property
    def _choice(self) -> ToolChoice:
        return self.tool_choice or "auto"

    @property
    def may_call(self) -> bool:
        """Whether the reply may be, or hold, a call."""
        return bool(self.tools) and self._choice != "none"

    @property
    def one_call(self) -> bool:
        return self.parallel_tool_calls is False

    def given(self) -> Given:
        turns = [message.as_turn() for message in self.messages]
        tools = offered(self.tools or (), self._choice)
        return Given((), Chat(turns, not self.tools, tools, variables=self.chat_template_kwargs or {}))
