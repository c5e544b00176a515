"""The bodies of requests, as the HTTP contract has them: closed, strict, bounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from softmux.api.deadline import LONGEST
from softmux.api.structured import ResponseFormat, StructuredOutputs, grammar_of
from softmux.api.wish import Chat, Given, Prompt, Wish
from softmux.errors import InvalidRequest
from softmux.types import SamplingParams

MAX_STOPS = 8
MAX_SAMPLES = 8
_GREEDY_BELOW = 1e-5
_SEEDS = 1 << 63

TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
Penalty = Annotated[FiniteFloat, Field(ge=-2, le=2)]
Role = Annotated[
    Literal["system", "developer", "user", "assistant", "tool"],
    Field(description="`developer` is another word for `system`."),
]
"""Who speaks in a chat. Most chat templates write down any word, which the model has never seen in its place."""
Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list that may be long: its first wrong item is enough, and millions of findings would stall the server."""
Priority = Annotated[
    int,
    Field(
        ge=-10,
        le=10,
        description="Higher goes first among the tenant's own requests. Each level counts as a minute of waiting.",
    ),
]
Timeout = Annotated[
    FiniteFloat, Field(gt=0, le=LONGEST, description="Seconds from receipt after which the request ends: 408.")
]
NewTokens = Annotated[int, Field(ge=1, lt=1 << 31, description="New tokens at most.")]
LogprobCount = Annotated[int, Field(ge=0, le=20, description="As in OpenAI's completions.")]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=1024)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ShareBody(Body):
    """Who beside its tenant may use a task: to generate, classify, and read what it is."""

    tenants: Annotated[list[str], Field(max_length=1000, description="Tenants by name.")] = []
    everyone: Annotated[bool, Field(description="All tenants of this registry.")] = False
    files: Annotated[bool, Field(description="They may fetch its files, too.")] = False


class TextPart(Body):
    type: Literal["text"]
    text: str


def as_told(role: Role) -> str:
    """The role as chat templates know it."""
    return "system" if role == "developer" else role


class Message(Body):
    """A turn of a chat."""

    role: Role
    content: str | Many[TextPart]
    name: str | None = None

    def as_chat(self) -> dict[str, str]:
        """As chat templates take it: the content one string."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        chat = {"role": as_told(self.role), "content": content}
        return chat if self.name is None else {**chat, "name": self.name}


class Sampling(Body):
    """How tokens are chosen, and when to stop: what every generating route takes."""

    min_tokens: Annotated[Count, Field(description="New tokens at least: no end, no stop string before.")] = 0
    ignore_eos: bool = Field(default=False, description="Go on after the model's end token.")
    temperature: Annotated[FiniteFloat, Field(ge=0, le=100, description="0 is greedy.")] = 0.0
    top_p: Annotated[FiniteFloat, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, lt=1 << 31, description="0 is off, and so is -1.")] = 0
    min_p: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    seed: Annotated[int, Field(ge=-_SEEDS, lt=_SEEDS)] | None = None
    repetition_penalty: Annotated[FiniteFloat, Field(ge=0.01, le=100)] = 1.0
    frequency_penalty: Penalty = 0.0
    presence_penalty: Penalty = 0.0
    logit_bias: (
        Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
                Annotated[FiniteFloat, Field(ge=-100, le=100)],
            ],
            Field(max_length=1024, description="Added to the logits, by token id."),
        ]
        | None
    ) = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS)] | None = Field(
        default=None, description="Ends the text, and is never part of it."
    )
    n: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 1
    response_format: ResponseFormat | None = Field(
        default=None,
        description="The reply's form, as OpenAI has it: free text, a JSON object, or a schema's document.",
    )
    structured_outputs: StructuredOutputs | None = Field(
        default=None, description="The reply's form, as vLLM has it: by a schema, a pattern, choices or a grammar."
    )
    stream: bool = False
    priority: Priority = 0
    timeout: Timeout | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def sampling(self, *, max_tokens: int, logprobs: int | None) -> SamplingParams:
        """As the engine takes it. Raises `InvalidRequest` where fields contradict each other."""
        grammar = grammar_of(self.response_format, self.structured_outputs)
        if grammar is not None and (self.ignore_eos or self.min_tokens):
            what = "ignore_eos" if self.ignore_eos else "min_tokens"
            raise InvalidRequest(
                f"{grammar.param} says where the reply ends, and {what} says otherwise; leave {what} out.", param=what
            )
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            temperature=0.0 if self.temperature < _GREEDY_BELOW else self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            seed=None if self.seed is None else self.seed % _SEEDS,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            logit_bias=tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items()),
            logprobs=logprobs,
            grammar=grammar,
        )


class GenerateBody(Sampling):
    """`POST /v1/generate`."""

    prompt: str | Many[TokenId] | Many[str] | None = Field(
        default=None, description="Text, token ids, or a batch of texts."
    )
    messages: Annotated[Many[Message], Field(min_length=1)] | None = Field(
        default=None, description="A chat, rendered with the model's own template."
    )
    max_tokens: NewTokens = 64
    logprobs: LogprobCount | None = None
    variables: dict[str, str] | None = Field(default=None, description="Values of the slots of a task's template.")
    return_token_ids: bool = Field(default=False, description="Adds `token_ids` to every choice.")

    def wish(self) -> Wish:
        sampling = self.sampling(max_tokens=self.max_tokens, logprobs=self.logprobs)
        return Wish(sampling, self.n, self.stops, priority=self.priority)

    def given(self) -> Given:
        """Raises `InvalidRequest` where prompt and messages are both there, or neither holds anything."""
        if self.messages is None:
            return Given(prompts_of(self.prompt), variables=self.variables)
        if self.prompt is not None:
            raise InvalidRequest("Send prompt or messages, not both.", param="prompt")
        return Given((), Chat([message.as_chat() for message in self.messages]), self.variables)


def prompts_of(prompt: str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]] | None) -> list[Prompt]:
    """The prompts that a field `prompt` holds: one, or a batch. Raises `InvalidRequest` where it is an empty list."""
    if prompt is None or isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequest("The prompt is an empty list; give it at least one token or text.", param="prompt")
    if isinstance(prompt[0], int):
        return [cast("list[int]", list(prompt))]  # a list holds one kind of item
    return [each if isinstance(each, str) else list(each) for each in prompt if not isinstance(each, int)]


class ClassifyBody(Body):
    """`POST /v1/classify`."""

    input: str | Many[str] = Field(description="A text, or a batch of them.")
    stride: Annotated[int, Field(ge=0, lt=1 << 31)] | None = Field(
        default=None,
        description="Long texts are read in windows that share so many tokens. Without it they are refused.",
    )
    aggregation: Literal["none", "word"] = Field(
        default="none", description="Of a task that labels tokens: `word` tells whole words, by their first token."
    )
    priority: Priority = 0
    timeout: Timeout | None = None


class ActivateBody(Body):
    """`POST /v1/adapters/{task}/activate`."""

    version: Annotated[int, Field(ge=1, lt=1 << 31)]
