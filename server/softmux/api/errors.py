"""Every error's answer, made in one place."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from softmux.errors import (
    BadRequest,
    BaseMismatch,
    Conflict,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    QuotaExceeded,
    RateLimited,
    SoftmuxError,
)
from softmux.telemetry.trail import current

log = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error"}
_IN_VAIN = (BaseMismatch, Conflict, QuotaExceeded)
"""What is answered the same again, though OpenAI's clients would repeat it for its status."""
_Path = tuple[int | str, ...]
_SHOULD = "Input should be "
_LONGEST = 300
_MANY = 1000
_UNION_TAG = re.compile(r"^(str|bool|int|float|constrained-str|(list|dict|literal)\[.*\])$", re.DOTALL)
_MODEL_TAG = re.compile(r"^[A-Z]\w*$")
"""What pydantic puts into a path for the member of a union it tried: a type, or a model beside types."""
_OBJECT = re.compile(r"a valid dictionary or (instance of \w+|object to extract fields from)")


def error_body(error: SoftmuxError) -> dict[str, Any]:
    """The contract's `{"error": {…}}`; `type` is OpenAI's word for the kind of status. The request's line in the log
    tells the code, too; what clients are not told of the error is logged here."""
    current().code = error.code
    if error.public != error.message:
        log.warning("answered %s: %s", error.code, error.message)
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.public, "type": kind, "param": error.param, "code": error.code}}


def error_response(error: SoftmuxError) -> Response:
    headers = dict(error.headers) if isinstance(error, RateLimited) else {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, _IN_VAIN):
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(error_body(error)), error.status, headers, "application/json")


def invalid(error: ValidationError | RequestValidationError) -> SoftmuxError:
    """pydantic's first finding in the contract's words: `BadRequest` for what is no JSON, else `InvalidRequest`."""
    if isinstance(error, ValidationError) and error.error_count() > _MANY:  # a list of them would take seconds
        return InvalidRequest(f"The body does not fit in {error.error_count():,} places; /docs says what a body holds.")
    found = error.errors()
    # Of a union's findings, the one that got furthest: that a list which is too long is no string is not what is wrong.
    tree = _tree(found)
    first = max(found, key=lambda one: (len(one["loc"]), not _mistyped(one), tree.first_entry(one["loc"])))
    kind, path = first["type"], list(first["loc"])
    if isinstance(error, RequestValidationError):
        path.pop(0)  # the part of the request
    if kind == "json_invalid":
        return BadRequest(f"The body is not valid JSON: {_short(str(first['ctx']['error']))}.")
    param = _short(str(path[0])) if path else None
    if kind == "extra_forbidden":
        return InvalidRequest(f"There is no field “{_short(str(path[-1]))}”; leave it out.", param=param)
    if kind in ("model_type", "model_attributes_type") and not path:
        return InvalidRequest("The body must be a JSON object.")
    if kind == "missing":
        return InvalidRequest(f"The field “{path[-1]}” is missing.", param=param)
    at = tree.where(first["loc"])
    said = str(first["msg"])
    if _mistyped(first):  # by all members of a union: any of them would do
        alike = [one for one in found if _mistyped(one) and tree.where(one["loc"]) == at]
        said = _SHOULD + " or ".join(dict.fromkeys(str(one["msg"]).removeprefix(_SHOULD) for one in alike))
        said = _OBJECT.sub("an object", said)
    where = ".".join(at[len(first["loc"]) - len(path) :])
    return InvalidRequest(_short(f"{where}: {said}" if where else said) + ".", param=param)


def _mistyped(one: Any) -> bool:
    """Whether a finding says no more than that a value is of another type, or is none of a few words."""
    kind = str(one["type"])
    return (kind.endswith("_type") or kind == "literal_error") and str(one["msg"]).startswith(_SHOULD)


def _tree(found: Sequence[Any]) -> _Tree:
    parts: dict[_Path, set[int | str]] = {}
    for path in (one["loc"] for one in found):
        for at, part in enumerate(path):
            parts.setdefault(path[:at], set()).add(part)
    entries = {path: [part for part in beside if isinstance(part, int)] for path, beside in parts.items()}
    return _Tree(parts, {path: min(numbers) for path, numbers in entries.items() if numbers})


@dataclass(frozen=True, slots=True)
class _Tree:
    """All findings' paths: the parts that follow each beginning, and the first of a list's entries among them."""

    parts: dict[_Path, set[int | str]]
    entries: dict[_Path, int]

    def first_entry(self, path: _Path) -> int:
        """Where a path ends in a list: the first entry that is wrong as this member of a union has it; else -1."""
        return self.entries.get(path[:-1], -1) if path and isinstance(path[-1], int) else -1

    def where(self, path: _Path) -> list[str]:
        """A path without the names of a union's members: others were tried in the same place."""
        return [str(part) for at, part in enumerate(path) if part != "[key]" and not self._of_a_union(path[:at], part)]

    def _of_a_union(self, before: _Path, part: int | str) -> bool:
        if not isinstance(part, str):
            return False
        if _UNION_TAG.match(part):
            return len(self.parts[before]) > 1
        return bool(_MODEL_TAG.match(part)) and any(
            isinstance(tag, str) and _UNION_TAG.match(tag) for tag in self.parts[before]
        )


def _http(request: Request, error: HTTPException, methods: Sequence[str]) -> SoftmuxError:
    if error.status_code == 404:
        return NotFound(f"There is no route {_short(request.url.path)}; /docs lists what there is.")
    if error.status_code == 405:
        return MethodNotAllowed(f"{request.method} is not for this route; it takes {', '.join(methods)}.")
    if error.status_code < 500:
        return BadRequest(str(error.detail))
    return InternalError(str(error.detail))


def unforeseen(method: str, path: str, error: Exception) -> Response:
    """The answer to what nobody thought of. For `Observe`, around all else: the framework's own place for such errors
    is outside of that, where an answer has no id and counts as none."""
    log.error("%s %s failed", method, path, exc_info=error)
    return error_response(InternalError("The server failed at this request; its log says where. Try again."))


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Makes every error of `app`, which has those routes, answer in the contract's shape."""

    def methods_of(request: Request) -> list[str]:
        """What its path takes, by all routes that have it: the framework names those of the first alone."""
        having = [route for route in routes if route.matches(request.scope)[0] != Match.NONE]
        methods = {method for route in having for method in getattr(route, "methods", None) or ()}
        return sorted(methods | ({"HEAD"} if "GET" in methods else set()))

    @app.exception_handler(SoftmuxError)
    async def ours(_: Request, error: SoftmuxError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def of_validation(_: Request, error: RequestValidationError) -> Response:
        return error_response(invalid(error))

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        methods = methods_of(request) if error.status_code == 405 else []
        response = error_response(_http(request, error, methods))
        if methods:
            response.headers["allow"] = ", ".join(methods)
        return response


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
