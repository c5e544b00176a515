"""What a call raises beside the errors that a server answers with.

SoftmuxError (softmux.errors: an answer's `code` names its class)
├── UnexpectedAnswer    an error that no softmux answers with: a proxy's, or a later version's
└── NoAnswer
    ├── Unreachable     no connection: nothing was sent
    ├── TimedOut        no answer in time
    └── Broken          the connection ended before the answer was whole
"""

from __future__ import annotations

import json
from typing import Any

import httpx

from softmux.errors import EngineDown, InternalError, SoftmuxError, from_code


class UnexpectedAnswer(SoftmuxError):
    """`answered` is the HTTP status it came with."""

    code = "unexpected_answer"

    def __init__(
        self, message: str, *, answered: int = 0, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, param=param, retry_after=retry_after)
        self.answered = answered


class NoAnswer(SoftmuxError):
    code = "no_answer"


class Unreachable(NoAnswer):
    """No connection could be made, so nothing was sent."""

    code = "unreachable"


class TimedOut(NoAnswer):
    """The answer did not come in time. What was asked may have been done."""

    code = "timed_out"


class Broken(NoAnswer):
    """The connection ended before the answer was whole. What was asked may have been done."""

    code = "broken"


def said(answer: Any, status: int, retry_after: float | None = None) -> SoftmuxError:
    """The error that a server's JSON tells; its class is the code's."""
    try:
        told = answer["error"]
        code, message, param = str(told["code"]), str(told["message"]), told["param"]
    except (KeyError, TypeError):
        return UnexpectedAnswer(
            f"The answer was {status}, and not in softmux's words: {str(answer)[:200]!r}. Is a softmux server at this "
            "address, and no proxy before it that answers itself?",
            answered=status,
            retry_after=retry_after,
        )
    error = from_code(code, message, param)
    if error.code != code:
        assert isinstance(error, InternalError)  # what `from_code` makes of codes it does not know
        error = UnexpectedAnswer(f"{message} ({code})", answered=status, param=param)
    error.retry_after = retry_after
    if isinstance(error, EngineDown):
        error.begun = told.get("begun") is not False  # an older server does not say
    return error


def of_response(response: httpx.Response) -> SoftmuxError:
    """The error of an answer whose body has been read."""
    try:
        answer = response.json()
    except ValueError:
        answer = response.text
    return said(answer, response.status_code, _seconds(response.headers.get("retry-after")))


def of_event(data: str) -> SoftmuxError:
    """The error that ends a stream which had begun."""
    return said(json.loads(data), 200)


def of_transport(error: httpx.HTTPError | httpx.InvalidURL, url: str) -> NoAnswer:
    what = str(error) or type(error).__name__
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.UnsupportedProtocol() | httpx.InvalidURL():
            return Unreachable(
                f"No server answers at {url} ({what}): start one with `softmux serve`, or give another address."
            )
        case httpx.TimeoutException():
            return TimedOut(f"No answer from {url} in time ({what}).")
    return Broken(f"The connection to {url} broke ({what}).")


def _seconds(header: str | None) -> float | None:
    """`Retry-After` as softmux writes it; a proxy's date counts as none."""
    try:
        return None if header is None else max(0.0, float(header))
    except ValueError:
        return None
