"""The rows of an input file, and the lines that answer them.

A row is a line of JSON: the fields of `POST /v1/generate`, or `{"input": …}` for a task that classifies, with an `id`
if wanted; or OpenAI's batch format, `{"custom_id", "method", "url", "body"}`, whose answers have OpenAI's form, too.
"""

from __future__ import annotations

import hashlib
import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from softmux.errors import BadRequest, InvalidRequest, SoftmuxError

GENERATE, CLASSIFY = "/v1/generate", "/v1/classify"
OPENAI = ("/v1/completions", "/v1/chat/completions")
URLS = (GENERATE, CLASSIFY, *OPENAI)
_BATCH = {"custom_id", "method", "url", "body"}


@dataclass(frozen=True, slots=True)
class Row:
    """One request. `number` is its line's, from 0; `id` what its writer calls it."""

    number: int
    id: Any
    url: str
    body: dict[str, Any]
    batch: bool
    """Whether it came in OpenAI's format."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a row: a reply, or an error. `status` is HTTP's."""

    row: Row
    reply: dict[str, Any] | None = None
    error: SoftmuxError | None = None
    status: int = 200

    def usage(self, name: str) -> int:
        return int((self.reply or {}).get("usage", {}).get(name, 0))

    def line(self) -> bytes:
        """As it is written, its newline included. No other line break is in it."""
        told = self._batch() if self.row.batch else self._plain()
        return (
            json.dumps({"row": self.row.number, **told}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        )

    def _plain(self) -> dict[str, Any]:
        named = {} if self.row.id is None else {"id": self.row.id}
        if self.reply is None:
            return {**named, "error": self._error()}
        reply = self.reply
        results = reply.get("results", [])
        short = {"text": reply["choices"][0]["text"]} if reply.get("choices") else {}
        if len(results) == 1 and "label" in results[0]:
            short = {"label": results[0]["label"]}
        return {**named, **short, "reply": reply, "error": None}

    def _batch(self) -> dict[str, Any]:
        body = {"error": self._error()} if self.reply is None else self.reply
        request_id = str(body.get("id", f"row-{self.row.number}"))
        response = {"status_code": self.status, "request_id": request_id, "body": body}
        error = None if self.error is None else {"code": self.error.code, "message": self.error.message}
        return {"id": f"batch_req_{self.row.number}", "custom_id": self.row.id, "response": response, "error": error}

    def _error(self) -> dict[str, Any]:
        assert self.error is not None
        return {
            "code": self.error.code, "message": self.error.message, "param": self.error.param, "status": self.status,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Input:
    """A file, as it was when it was looked at."""

    path: Path
    digest: str
    lines: int
    rows: int
    """Lines that are not empty."""

    @classmethod
    def of(cls, path: Path) -> Input:
        """Reads the file once, line by line. Raises `InvalidRequest` where it can't be read."""
        digest, lines, rows = hashlib.sha256(), 0, 0
        try:
            if not path.is_file() and (path.exists() or str(path) == "-"):
                raise InvalidRequest(
                    f"{path} is no plain file, and the input is read more than once: save its lines to a file first, "
                    "and give that.",
                    param="input",
                )
            with path.open("rb") as stream:
                for line in stream:
                    digest.update(line)
                    lines += 1
                    rows += bool(line.strip())
        except OSError as error:
            raise InvalidRequest(f"{path} can't be read: {error.strerror}.", param="input") from None
        if not rows:
            raise InvalidRequest(f"{path} has no rows; give it a line of JSON for each request.", param="input")
        return cls(path, f"sha256:{digest.hexdigest()}", lines, rows)

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        """The rows' lines with their numbers, as they are read."""
        with self.path.open("rb") as stream:
            for number, line in enumerate(stream):
                if line.strip():
                    yield number, line


def parse(number: int, line: bytes, defaults: dict[str, Any]) -> Row | Answer:
    """A line as a row, or its refusal. `defaults` are the fields it gets where it does not say otherwise."""
    try:
        value = msgspec.json.decode(line.removeprefix(BOM_UTF8))  # unlike Python's, what it takes can be sent on
    except (ValueError, RecursionError) as error:
        row = Row(number, None, GENERATE, {}, batch=False)
        return _refused(row, BadRequest(f"The line is no JSON: {error}."))
    if not isinstance(value, dict):
        row = Row(number, None, GENERATE, {}, batch=False)
        return _refused(row, BadRequest('A row is a JSON object, as {"prompt": "…"}.'))
    if value.keys() >= _BATCH:
        return _parse_batch(number, value, defaults)
    given = value.pop("id", None)
    url = CLASSIFY if "input" in value else GENERATE
    return _checked(Row(number, given, url, _with(value, url, defaults), batch=False))


def _parse_batch(number: int, value: dict[str, Any], defaults: dict[str, Any]) -> Row | Answer:
    url, body = value["url"], value["body"]
    row = Row(number, value["custom_id"], str(url), body if isinstance(body, dict) else {}, batch=True)
    if value["method"] != "POST" or url not in URLS:
        return _refused(row, InvalidRequest(f"method and url are POST and one of {', '.join(URLS)}.", param="url"))
    if not isinstance(body, dict):
        return _refused(row, InvalidRequest("body is the request's JSON object.", param="body"))
    return _checked(Row(number, row.id, row.url, _with(body, row.url, defaults), batch=True))


def _with(body: dict[str, Any], url: str, defaults: dict[str, Any]) -> dict[str, Any]:
    return body if url == CLASSIFY else {**defaults, **body}


def _checked(row: Row) -> Row | Answer:
    if row.body.get("stream"):
        return _refused(row, InvalidRequest("Rows are answered whole; leave stream out.", param="stream"))
    return row


def _refused(row: Row, error: SoftmuxError) -> Answer:
    return Answer(row, error=error, status=error.status)
