"""Every error softmux raises on purpose, with the HTTP answer it becomes.

    SoftmuxError
    ├── BadRequest 400 bad_request
    │   ├── WrongTaskKind 400 wrong_task_kind
    │   └── ContextTooLong 400 context_too_long
    ├── Unauthorized 401 unauthorized
    ├── Forbidden 403 forbidden
    ├── NotFound 404 not_found
    │   ├── TaskNotFound 404 task_not_found
    │   └── VersionNotFound 404 version_not_found
    ├── MethodNotAllowed 405 method_not_allowed
    ├── DeadlineExceeded 408 deadline_exceeded
    ├── Conflict 409 conflict
    ├── BaseMismatch 409 base_mismatch
    ├── TooLarge 413 too_large
    ├── UnsupportedMediaType 415 unsupported_media_type
    ├── InvalidRequest 422 invalid_request
    │   ├── InvalidAdapter 422 invalid_adapter
    │   └── Quarantined 422 quarantined
    ├── RateLimited 429 rate_limited
    │   └── QuotaExceeded 429 quota_exceeded
    ├── InternalError 500 internal
    │   ├── SelfTestFailed (at load: the server refuses to start)
    │   ├── NotFinite (a row's logits or scores are NaN or infinite)
    │   └── BlobDamaged (a stored file is gone or its hash is wrong)
    └── Unavailable 503
        ├── Overloaded 503 overloaded
        ├── EngineDown 503 engine_down
        └── RegistryDown 503 registry_down

`message` says what is wrong and what to do about it; `param` names the field, or the file and field. The API turns
an error into its answer in one place (`softmux.api.errors`), and a worker sends one over the wire as
(code, message, param), from which `from_code` makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class SoftmuxError(Exception):
    """Base of the tree. `retry_after` is in seconds, for 429 and 503 answers. `public` is what clients of the API are
    told, where `message` names addresses or folders that are the operator's business."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = None, public: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.public = message if public is None else public
        self.param = param
        self.retry_after = retry_after


class BadRequest(SoftmuxError):
    status, code = 400, "bad_request"


class WrongTaskKind(BadRequest):
    code = "wrong_task_kind"


class ContextTooLong(BadRequest):
    """Of a generation, its message begins as OpenAI's does: that is how LiteLLM tells it from other bad requests."""

    code = "context_too_long"


class Unauthorized(SoftmuxError):
    status, code = 401, "unauthorized"


class Forbidden(SoftmuxError):
    status, code = 403, "forbidden"


class NotFound(SoftmuxError):
    status, code = 404, "not_found"


class TaskNotFound(NotFound):
    code = "task_not_found"


class VersionNotFound(NotFound):
    code = "version_not_found"


class MethodNotAllowed(SoftmuxError):
    status, code = 405, "method_not_allowed"


class DeadlineExceeded(SoftmuxError):
    status, code = 408, "deadline_exceeded"


class Conflict(SoftmuxError):
    """What is asked does not go together with what there is."""

    status, code = 409, "conflict"


class BaseMismatch(SoftmuxError):
    status, code = 409, "base_mismatch"


class TooLarge(SoftmuxError):
    status, code = 413, "too_large"


class UnsupportedMediaType(SoftmuxError):
    status, code = 415, "unsupported_media_type"


class InvalidRequest(SoftmuxError):
    status, code = 422, "invalid_request"


class InvalidAdapter(InvalidRequest):
    code = "invalid_adapter"


class Quarantined(InvalidRequest):
    code = "quarantined"


class RateLimited(SoftmuxError):
    """`headers` are the answer's: what the limit is, and what is left of it."""

    status, code = 429, "rate_limited"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = 1.0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.headers = dict(headers or {})


class QuotaExceeded(RateLimited):
    code = "quota_exceeded"


class InternalError(SoftmuxError):
    status, code = 500, "internal"


class SelfTestFailed(InternalError):
    """The packed run and the eager module disagree on this model: the server must not start."""


class NotFinite(InternalError):
    """An adapter, or the base model, gave one row numbers that are not finite: that row alone fails."""


class BlobDamaged(InternalError):
    """A stored file is gone, or is not what its hash says. Uploading the adapter again heals it."""


class Unavailable(SoftmuxError):
    status = 503

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = 1.0, public: str | None = None
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after, public=public)


class Overloaded(Unavailable):
    code = "overloaded"


class EngineDown(Unavailable):
    """`begun`: the engine had the request. Part of it may have been computed and counted as used, and, of a stream,
    sent. Where it had not, sending it again does nothing twice."""

    code = "engine_down"

    def __init__(
        self, message: str, *, param: str | None = None, retry_after: float | None = 1.0, begun: bool = False
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.begun = begun


class RegistryDown(Unavailable):
    code = "registry_down"


def _leaves(cls: type[SoftmuxError]) -> dict[str, type[SoftmuxError]]:
    """By code, the class that says it: a parent before its children, and no class without a code of its own."""
    found = {cls.code: cls} if "code" in vars(cls) and cls is not SoftmuxError else {}
    for child in cls.__subclasses__():
        for code, error in _leaves(child).items():
            found.setdefault(code, error)
    return found


def from_code(code: str, message: str, param: str | None = None) -> SoftmuxError:
    """The error a worker named by its code. An unknown code becomes `InternalError`."""
    return _leaves(SoftmuxError).get(code, InternalError)(message, param=param)
