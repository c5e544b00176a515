"""What is learned of a request on its way: its one line in the log is made of it, and its spans."""

from __future__ import annotations

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from softmux.types import AdapterRef, Output, SamplingParams

HEADER = "x-request-id"
_SENT = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


@dataclass(slots=True)
class Row:
    """One sequence: seconds it waited, and ran until its first token, as the worker tells them; the monotonic times at
    which its first and its last token came to the API; how many tokens; how often it was put back."""

    queue: float
    prefill: float
    first: float
    last: float
    tokens: int = 0
    cached: int = 0
    preemptions: int = 0
    finish_reason: str | None = None


@dataclass(slots=True)
class Trail:
    """Of one request. `began` is monotonic, `wall` the Unix time then. What is not known of it stays empty."""

    request_id: str = ""
    began: float = field(default_factory=time.monotonic)
    wall: float = field(default_factory=time.time)
    asked: str | None = None
    """The task as the client names it."""
    adapter: AdapterRef | None = None
    base: str = ""
    """The base model's id, once the request runs on it."""
    submitted: float = 0.0
    sampling: SamplingParams | None = None
    samples: int = 1
    """Choices asked for of each prompt."""
    rows: dict[str, Row] = field(default_factory=dict)
    prompt_tokens: int = 0
    virtual_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    """As the reply counts them: of each prompt once, however many samples it has."""
    reply: str = ""
    code: str | None = None
    """Of the error it was answered with, in its status or in its stream; `gone` where the client left."""

    @classmethod
    def of(cls, sent: str | None) -> Trail:
        """`sent`: the id by which the client calls it; another one is made where that is none, or no good one."""
        good = sent is not None and _SENT.fullmatch(sent)
        return cls(sent if sent is not None and good else "req-" + secrets.token_hex(12))

    def runs(
        self, reply: str, base: str, sampling: SamplingParams | None, submitted: float, *, samples: int = 1
    ) -> None:
        """It has been given to the worker, `submitted` being monotonic and before that."""
        self.reply, self.base, self.sampling, self.submitted = reply, base, sampling, submitted
        self.samples = samples

    def first(self, output: Output, at: float) -> None:
        """The first that came of a sequence."""
        self.rows[output.id] = Row(output.queue_seconds, output.prefill_seconds, at, at, cached=output.cached_tokens)

    def ended(self, output: Output, at: float) -> None:
        """The last that came of a sequence."""
        row = self.rows.get(output.id)
        if row is None:
            self.first(output, at)
            row = self.rows[output.id]
        row.last, row.preemptions, row.finish_reason = at, output.preemptions, output.finish_reason

    def chose(self, name: str, finish_reason: str | None, tokens: int, last: float | None) -> None:
        """What became of a sequence: a stop string ends one that the worker would go on with."""
        row = self.rows.get(name)
        if row is not None:
            row.finish_reason, row.tokens = finish_reason, tokens
            row.last = max(row.last, last or 0.0)

    def used(self, prompt: int, virtual: int, completion: int, *, cached: int) -> None:
        """It is over, and used so many tokens, `cached` of them found in the cache."""
        self.prompt_tokens, self.virtual_tokens, self.completion_tokens = prompt, virtual, completion
        self.cached_tokens = cached

    def line(self) -> dict[str, Any]:
        """The fields of its line in the log, beside the answer's. Nothing of what was asked or said."""
        fields: dict[str, Any] = {"request_id": self.request_id}
        if self.adapter is not None:
            adapter = self.adapter
            fields |= {"task": adapter.task, "version": adapter.version or None, "digest": adapter.digest}
        elif self.asked is not None:
            fields["task"] = self.asked
        if self.code is not None:
            fields["code"] = self.code
        if self.base:
            fields |= {
                "reply": self.reply,
                "prompt_tokens": self.prompt_tokens,
                "virtual_tokens": self.virtual_tokens,
                "cached_tokens": self.cached_tokens,
                "completion_tokens": self.completion_tokens,
                "finish_reasons": [row.finish_reason for row in self.rows.values()],
            }
        if self.rows:
            first = min(self.rows.values(), key=lambda row: row.first)
            fields |= {
                "queue_ms": round(1000 * first.queue, 1),
                "prefill_ms": round(1000 * first.prefill, 1),
                "first_token_ms": round(1000 * (first.first - self.began), 1),
            }
        return fields


_current: ContextVar[Trail] = ContextVar("trail")


def begin(sent: str | None) -> Trail:
    """The trail of the request that this task answers from now on."""
    trail = Trail.of(sent)
    _current.set(trail)
    return trail


def current() -> Trail:
    """Of the request that is being answered; one that nobody reads where none is."""
    return _current.get(None) or Trail()
