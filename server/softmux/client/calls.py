"""The calls there are, as values: what is sent, what comes back, and whether it may be sent twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict
from urllib.parse import quote

from softmux.errors import InvalidRequest

READS = frozenset({"rate_limited", "overloaded", "engine_down", "registry_down"})
"""After these a call that changes nothing, or twice the same, is made again."""
WORKS = frozenset({"rate_limited", "overloaded", "registry_down"})
"""After these the engine has not begun: `engine_down` may come in the midst of it, and be the request's own doing."""
REFUSED = frozenset({"rate_limited", "overloaded"})
"""After these nothing was changed."""

_GRACE = 5.0
"""Seconds beyond a request's deadline that its answer may take to arrive."""


class Message(TypedDict):
    """A turn of a chat."""

    role: str
    content: str


class Sampling(TypedDict, total=False):
    """The fields of `POST /v1/generate` beside its input, as docs/http.md explains them."""

    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[str, float]
    stop: str | Sequence[str]
    n: int
    logprobs: int
    response_format: Mapping[str, Any]
    structured_outputs: Mapping[str, Any]
    priority: int
    timeout: float
    return_token_ids: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One request. After an answer with a code of `repeat` it may be sent again; after none only if `idempotent`."""

    method: str
    path: str
    params: Mapping[str, str] | None = None
    json: Any = None
    files: Mapping[str, tuple[str, bytes]] | None = None
    repeat: frozenset[str] = READS
    idempotent: bool = True
    timeout: float | None = None
    """Seconds for reading the answer, where they are other than the client's."""

    def arguments(self) -> dict[str, Any]:
        """As httpx takes it."""
        given = {"params": self.params, "json": self.json, "files": self.files}
        return {name: value for name, value in given.items() if value is not None}


READY = Call("GET", "/health/ready", timeout=5.0)


def get(path: str, **params: str | None) -> Call:
    return Call("GET", path, {name: value for name, value in params.items() if value is not None})


def generate(
    prompt: str | Sequence[int] | Sequence[str] | None,
    task: str | None,
    messages: Sequence[Message] | None,
    variables: Mapping[str, str] | None,
    sampling: Sampling,
    *,
    stream: bool,
) -> Call:
    body: dict[str, Any] = dict(sampling)
    given = {"prompt": prompt, "messages": messages, "variables": variables}
    body |= {name: value for name, value in given.items() if value is not None}
    if stream:
        body["stream"] = True
    return _work("/v1/generate", task, body)


def classify(
    texts: str | Sequence[str],
    task: str,
    *,
    stride: int | None,
    aggregation: Literal["none", "word"],
    priority: int,
    timeout: float | None,
) -> Call:
    body: dict[str, Any] = {"input": texts if isinstance(texts, str) else list(texts)}
    body |= {} if stride is None else {"stride": stride}
    body |= {} if aggregation == "none" else {"aggregation": aggregation}
    body |= {} if priority == 0 else {"priority": priority}
    body |= {} if timeout is None else {"timeout": timeout}
    return _work("/v1/classify", task, body)


def _work(path: str, task: str | None, body: dict[str, Any]) -> Call:
    timeout = body.get("timeout")
    return Call(
        "POST", path, None if task is None else {"task": task}, body, repeat=WORKS, idempotent=False,
        timeout=None if timeout is None else timeout + _GRACE,
    )  # fmt: skip


def upload(task: str, files: Mapping[str, bytes], *, activate: bool) -> Call:
    """The same content again is the same version, so it may be sent twice."""
    parts = {name: (name, data) for name, data in files.items()}
    return Call("PUT", _adapter(task), {"activate": str(activate).lower()}, files=parts)


def adapter(task: str) -> Call:
    return get(_adapter(task))


def versions(task: str) -> Call:
    return get(f"{_adapter(task)}/versions")


def activate(task: str, version: int) -> Call:
    return Call("POST", f"{_adapter(task)}/activate", json={"version": version}, repeat=REFUSED, idempotent=False)


def delete(task: str) -> Call:
    return Call("DELETE", _adapter(task), repeat=REFUSED, idempotent=False)


def file(task: str, version: int, name: str) -> Call:
    return get(f"{_adapter(task)}/versions/{version}/files/{quote(name, safe='')}")


def _adapter(task: str) -> str:
    """A task's address; `tenant/task` is one that another tenant shares."""
    owner, given, name = task.rpartition("/")
    if not name:
        raise InvalidRequest("Name the task.", param="task")
    return f"/v1/shared/{quote(owner, safe='')}/{quote(name, safe='')}" if given else f"/v1/adapters/{quote(name)}"
