"""What OpenAI's routes answer, for `/openapi.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from softmux.api.replies import WARNINGS, Adapter, Logprobs
from softmux.types import FinishReason


class PromptTokensDetails(BaseModel):
    cached_tokens: int


class OpenAIUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    virtual_tokens: int = Field(description="Learned tokens, which are none of the prompt's.")


class _Reply(BaseModel):
    id: str
    created: int
    model: str = Field(description="As the request named it.")
    system_fingerprint: str = Field(description="The digest of the adapter's version, or the base's fingerprint.")
    adapter: Adapter | None
    warnings: list[str] = Field(default=[], description=WARNINGS)
    usage: OpenAIUsage


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] = Field(default=[], description="Only where `return_token_ids` asks for them.")


class CompletionReply(_Reply):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ChatToken(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class ChatTokenChosen(ChatToken):
    top_logprobs: list[ChatToken]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenChosen]
    refusal: None


class CalledFunction(BaseModel):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it.")


class ToolCallReply(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessageReply(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCallReply] = Field(default=[], description="Only where tools are called.")


class ChatChoice(BaseModel):
    index: int
    message: ChatMessageReply
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | Literal["tool_calls"] | None
    token_ids: list[int] = Field(default=[], description="Only where `return_token_ids` asks for them.")


class ChatCompletionReply(_Reply):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class OpenAIModel(BaseModel):
    id: str = Field(description="What the field `model` takes.")
    object: Literal["model"]
    created: int
    owned_by: str = Field(description="The tenant whose task it is.")
    root: str = Field(description="The base model.")
    parent: str | None = Field(description="The base model of a task.")
    max_model_len: int
    generates: bool = Field(description="False for what only classifies: `POST /v1/classify`.")
    adapter: Adapter | None


class OpenAIModels(BaseModel):
    object: Literal["list"]
    data: list[OpenAIModel]
    has_more: bool = Field(description="There are more: ask with `after`, the last id.")
