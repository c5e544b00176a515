"""What comes back, frozen and typed. Fields that a later server adds are left alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import httpx
import msgspec

from softmux.client.errors import UnexpectedAnswer
from softmux.errors import VersionNotFound

T = TypeVar("T")


class Adapter(msgspec.Struct, frozen=True, kw_only=True):
    """What made a reply. `digest` names the exact weights."""

    task: str
    digest: str
    method: str
    version: int | None = None
    """None where several tasks are combined."""
    parts: tuple[Adapter, ...] = ()


class Logprobs(msgspec.Struct, frozen=True, kw_only=True):
    """In the shape of OpenAI's completions."""

    tokens: tuple[str, ...]
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[dict[str, float], ...]
    text_offset: tuple[int, ...]


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """A text, or of a chunk what is new in it."""

    index: int
    text: str
    finish_reason: str | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: Logprobs | None = None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    virtual_tokens: int = 0
    cached_tokens: int = 0


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    adapter: Adapter | None = None
    warnings: tuple[str, ...] = ()
    """What is odd about the request, as an input longer than what the version was trained on."""

    @property
    def text(self) -> str:
        """The first choice's."""
        return self.choices[0].text


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """What is new in a stream. `usage` is on the last one alone."""

    id: str
    created: int
    model: str
    choices: tuple[Choice, ...]
    usage: Usage | None = None
    adapter: Adapter | None = None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """What is new in the choice, or choices, that it is of."""
        return "".join(choice.text for choice in self.choices)


class TokenLabel(msgspec.Struct, frozen=True, kw_only=True):
    """A token, or a word, of an input. `start` and `end` are characters."""

    text: str
    start: int
    end: int
    label: str
    score: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """Of one input: a label with its scores, or where the task labels tokens, `tokens`."""

    label: str = ""
    score: float = 0.0
    labels: tuple[str, ...] = ()
    scores: dict[str, float] = {}
    tokens: tuple[TokenLabel, ...] = ()


class Classification(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    adapter: Adapter
    results: tuple[Result, ...]
    usage: Usage
    warnings: tuple[str, ...] = ()


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """The base model that the server runs."""

    id: str
    architecture: str
    dtype: str
    device: str
    hidden_size: int
    layers: int
    vocab_size: int
    context_length: int
    parameters: int
    weight_bytes: int
    base_fingerprint: str
    tokenizer_fingerprint: str
    quantization: str | None = None
    kv_cache_dtype: str | None = None


class File(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    bytes: int
    sha256: str


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A task's version. It never changes, but for `active`."""

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
    files: tuple[File, ...]
    warnings: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()
    """Of an upload alone: what was tried, in sentences."""
    template: str | None = None
    labels: tuple[str, ...] | dict[str, str] | None = None
    trained_lengths: tuple[int, int] | None = None
    combines: bool | None = None
    notes: str | None = None
    base_model_name_or_path: str | None = None


class Page(msgspec.Struct, frozen=True, kw_only=True):
    data: tuple[Version, ...]
    next_cursor: str | None = None


def chosen(versions: Sequence[Version], number: int | None) -> Version:
    """The version of that number, or the active one. Raises `VersionNotFound`."""
    for version in versions:
        if version.active if number is None else version.version == number:
            return version
    task = versions[0].task if versions else "the task"
    there = ", ".join(str(version.version) for version in versions)
    what = "no active version" if number is None else f"no version {number}"
    raise VersionNotFound(f"{task} has {what}; there are: {there or 'none'}.", param="version")


def decoded(response: httpx.Response, kind: type[T]) -> T:
    return decode(response.content, kind, response.status_code)


def decode(data: bytes | str, kind: type[T], status: int = 200) -> T:
    """Raises `UnexpectedAnswer`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise UnexpectedAnswer(
            f"The answer is no {kind.__name__} ({error}). Is a softmux server at this address, and as new as this "
            "client?",
            answered=status,
        ) from None


def event_data(line: str) -> str | None:
    """An event's data, or None for any other line of a stream."""
    return line.removeprefix("data:").strip() if line.startswith("data:") else None
