"""Every error's answer, made in one place."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match

from softmux.api.findings import invalid, shortened
from softmux.errors import (
    BadRequest,
    BaseMismatch,
    Conflict,
    EngineDown,
    InternalError,
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


def error_body(error: SoftmuxError) -> dict[str, Any]:
    """The contract's `{"error": {…}}`; `type` is OpenAI's word for the kind of status. The request's line in the log
    tells the code, too; what clients are not told of the error is logged here."""
    current().code = error.code
    if error.public != error.message:
        log.warning("answered %s: %s", error.code, error.message)
    kind = _TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    told: dict[str, Any] = {"message": error.public, "type": kind, "param": error.param, "code": error.code}
    if isinstance(error, EngineDown):
        told["begun"] = error.begun
    return {"error": told}


def error_response(error: SoftmuxError) -> Response:
    headers = dict(error.headers) if isinstance(error, RateLimited) else {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, _IN_VAIN):
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(error_body(error)), error.status, headers, "application/json")


def _http(request: Request, error: HTTPException, methods: Sequence[str]) -> SoftmuxError:
    if error.status_code == 404:
        return NotFound(f"There is no route {shortened(request.url.path)}; /docs lists what there is.")
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
