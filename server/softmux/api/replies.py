"""What routes answer, for `/openapi.json`. Replies are made where they are answered; nothing is checked at run time."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from softmux.registry.keys import Role
from softmux.types import Family, FinishReason, HeadKind, ProblemType

_MEANINGS = {
    400: "No JSON or no multipart, a task of the other kind, or more tokens than the context holds.",
    401: "No key, or one that is unknown or revoked.",
    403: "The key's role may not do this.",
    404: "There is no such thing, or it is another tenant's.",
    405: "The route takes another method.",
    408: "Not finished in the time it was given.",
    409: "Made for another base model or tokenizer; or a tenant that is in use, or was deleted.",
    413: "Larger than this server takes.",
    415: "Sent as another media type than the route takes.",
    422: "It does not fit; `param` names the field, or the file and field.",
    429: "A limit of the tenant's is reached; `Retry-After` says when to come back.",
    500: "The server failed; its log says where.",
    503: "Overloaded, or the engine or the registry is away; `Retry-After` says when to come back.",
}


class Error(BaseModel):
    message: str = Field(description="What is wrong, and what to do about it.")
    type: str = Field(description="OpenAI's word for the kind of status.")
    param: str | None
    code: str
    begun: bool | None = Field(
        default=None,
        description="Of `engine_down` alone: whether the engine had the request, so that it may cost twice.",
    )


class ErrorReply(BaseModel):
    error: Error


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": meaning} for status, meaning in _MEANINGS.items()
}
"""What any route may answer instead: for `include_router(responses=…)`."""


class Adapter(BaseModel):
    task: str
    version: int | None = Field(description="Null where several tasks are combined.")
    digest: str = Field(description="Names the exact weights that made this reply; of several, theirs joined by `+`.")
    method: str
    parts: list[Adapter] | None = Field(default=None, description="The tasks that are combined, in order.")


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class Choice(BaseModel):
    index: int
    text: str
    finish_reason: FinishReason | None
    token_ids: list[int] = Field(default=[], description="Only where `return_token_ids` asks for them.")
    logprobs: Logprobs | None


class Usage(BaseModel):
    prompt_tokens: int
    virtual_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int


WARNINGS = "Only where something is odd: an input longer, or shorter, than what the version was trained on."


class GenerationReply(BaseModel):
    id: str
    object: Literal["generation"]
    created: int
    model: str
    adapter: Adapter | None
    warnings: list[str] = Field(default=[], description=WARNINGS)
    choices: list[Choice]
    usage: Usage


class SequenceLabel(BaseModel):
    label: str
    score: float
    labels: list[str] = Field(default=[], description="Of a task with several labels at once: the likely ones.")
    scores: dict[str, float]


class TokenLabel(BaseModel):
    text: str
    start: int = Field(description="Offset of the first character.")
    end: int = Field(description="Offset behind the last character.")
    label: str
    score: float


class TokenLabels(BaseModel):
    tokens: list[TokenLabel]


class ClassificationUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class ClassificationReply(BaseModel):
    object: Literal["classification"]
    model: str
    adapter: Adapter
    warnings: list[str] = Field(default=[], description=WARNINGS)
    results: list[SequenceLabel | TokenLabels]
    usage: ClassificationUsage


class ReadyReply(BaseModel):
    status: Literal["ready"]
    replicas: int = Field(description="Engines that there should be.")
    up: int = Field(description="Those that this process reaches. Fewer serve as well, but less.")


class ModelReply(BaseModel):
    id: str
    object: Literal["model"]
    architecture: str
    family: Family = Field(description="An encoder only classifies.")
    dtype: str
    quantization: str | None
    kv_cache_dtype: str | None
    device: str
    hidden_size: int
    layers: int
    vocab_size: int
    context_length: int
    parameters: int
    weight_bytes: int
    base_fingerprint: str
    tokenizer_fingerprint: str


class File(BaseModel):
    name: str
    bytes: int
    sha256: str


class VersionReply(BaseModel):
    task: str
    version: int
    digest: str
    method: str
    virtual_tokens: int
    parameters: int
    bytes: int
    base_fingerprint: str
    created_at: int
    active: bool
    warnings: list[str]
    checks: list[str] = Field(default=[], description="Of an upload alone: what was tried, in sentences.")
    files: list[File]
    template: str | None
    labels: list[str] | dict[str, str] | None
    head: HeadKind | None = Field(description="What it classifies, whole sequences or tokens; null where it generates.")
    problem_type: ProblemType | None = Field(description="How a head's outputs are read.")
    trained_lengths: tuple[int, int] | None
    combines: bool | None
    notes: str | None
    tokenizer_fingerprint: str | None
    base_model_name_or_path: str | None
    tokenizer_name_or_path: str | None
    revision: str | None


class VersionsReply(BaseModel):
    data: list[VersionReply]


class VersionPage(VersionsReply):
    next_cursor: str | None


class SharedVersionReply(VersionReply):
    owner: str = Field(description="The tenant that shares it; `task` is `owner/task`.")
    shared: Literal[True]


class SharedVersionsReply(BaseModel):
    data: list[SharedVersionReply]


class SharedVersionPage(SharedVersionsReply):
    next_cursor: str | None


class ShareReply(BaseModel):
    tenants: list[str]
    everyone: bool
    files: bool


class LimitsReply(BaseModel):
    requests_per_minute: int | None
    tokens_per_minute: int | None
    tokens_in_flight: int | None
    stored_bytes: int | None
    adapters: int | None


class CallerReply(BaseModel):
    object: Literal["caller"]
    tenant: str
    role: Role
    key_id: str | None = Field(description="Null while the server has no keys.")
    metrics: bool = Field(description="Whether `/metrics` may be read from here with this key.")
    weight: float
    limits: LimitsReply


class AccessReply(BaseModel):
    keys: bool = Field(description="Whether a key is needed here.")


class TenantReply(BaseModel):
    name: str
    created_at: int
    weight: float
    limits: LimitsReply


class TenantsReply(BaseModel):
    data: list[TenantReply]


class KeyReply(BaseModel):
    id: str
    tenant: str
    role: str
    prefix: str = Field(description="Its first characters, to tell keys apart by eye.")
    created_at: int
    revoked_at: int | None


class KeysReply(BaseModel):
    data: list[KeyReply]


class KeyMade(BaseModel):
    id: str
    key: str = Field(description="The key itself, which can't be had again.")
    tenant: str
    role: str


class AuditEntryReply(BaseModel):
    id: str
    at: float
    actor: str = Field(description="`tenant/key id`, or `cli`, or `start`.")
    action: str
    tenant: str = Field(description="Whose thing was changed.")
    task: str | None
    version: int | None
    digest: str | None
    detail: dict[str, Any]


class AuditReply(BaseModel):
    data: list[AuditEntryReply]
    next_after: str | None = Field(description="For the next page; null where there is nothing more, as yet.")


class UsageTotal(BaseModel):
    requests: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    virtual_tokens: int
    gpu_seconds: float = Field(description="Estimated: each step's duration, shared out by tokens computed.")


class UsageRow(UsageTotal):
    date: str
    tenant: str
    task: str | None = Field(description="Null for the bare model.")


class UsageReport(BaseModel):
    object: Literal["usage"]
    since: str = Field(alias="from")
    to: str
    data: list[UsageRow]
    total: UsageTotal


def answers(
    model: type[BaseModel], status: int = 200, *, also: int | None = None, lines: bool = False
) -> dict[int | str, dict[str, Any]]:
    """A route's `responses`: `model` under `status`, and under `also`; where `lines`, as lines of JSON, too."""
    described: dict[str, Any] = {"model": model, "description": "Done."}
    if lines:
        described["content"] = {"application/x-ndjson": {"schema": {"type": "string"}}}
    return {code: described for code in (status, also) if code is not None}


FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The file, as it was sent.",
        "content": {
            "application/json": {},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}
"""The `responses` of a route that answers a version's file: those named `….json` as JSON."""


def events(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """As `answers`, of a route that streams where it is asked to."""
    data = {"type": "string", "description": "JSON: the reply's shape, with what is new; `[DONE]` at last."}
    event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
    streamed = {"text/event-stream": {"schema": event}}
    return {200: {"model": model, "description": "Done, or its events where `stream` is set.", "content": streamed}}
