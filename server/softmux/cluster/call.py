"""An HTTP request on its way from the ingress to a replica, what it is routed by, and whether it may be sent twice."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, unquote

import msgspec

_ANSWERS = frozenset({"/v1/generate", "/v1/classify", "/v1/completions", "/v1/chat/completions"})
"""POST routes that change nothing."""
_BY_MODEL = frozenset({"/v1/completions", "/v1/chat/completions"})
_ADAPTERS = "/v1/adapters/"
_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT"})
"""DELETE is none of them: sent again after it was done, it would answer 404."""
_TIMEOUT = b"x-request-timeout"
_LEAST_SECONDS = 0.001
"""What is left of a deadline that has passed: the next replica says so."""


class _Named(msgspec.Struct):
    model: str = ""


class _Timed(msgspec.Struct):
    timeout: float | None = None


_named = msgspec.json.Decoder(_Named)
_timed = msgspec.json.Decoder(_Timed)


@dataclass(frozen=True, slots=True)
class Call:
    """`path` as it was sent, without the query; `headers` as ASGI has them."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def key(self) -> str | None:
        """What must be warm: the caller and the task's name. None: nothing is, such as for the bare model.

        The caller is told by the key that was sent, not by the tenant, which only the registry knows. A tenant with two
        keys is two callers then: its adapters may be warm twice.
        """
        task = self._task().partition("@")[0]
        if not task:
            return None
        credentials = next((value for name, value in self.headers if name == b"authorization"), b"")
        return f"{hashlib.blake2b(credentials, digest_size=8).hexdigest()}/{task}"

    def may_repeat(self) -> bool:
        """Whether a replica that got the whole request and was lost changes nothing by it, or the same as another."""
        return self.method in _REPEATABLE or self.path in _ANSWERS

    def after(self, seconds: float) -> Call:
        """As it is sent to another replica, so long after it came: with what is left of its deadline."""
        if (deadline := self.deadline()) is None:
            return self
        left = max(_LEAST_SECONDS, deadline - seconds)
        others = tuple(header for header in self.headers if header[0] != _TIMEOUT)
        return replace(self, headers=(*others, (_TIMEOUT, f"{left:.3f}".encode())))

    def deadline(self) -> float | None:
        """Seconds that the client gave it, if any; None, too, for what is none: whichever replica gets it says so."""
        try:
            timeouts = [float(value) for name, value in self.headers if name == _TIMEOUT]
        except ValueError:
            return None
        if (timeout := self._timeout()) is not None:
            timeouts.append(timeout)
        if not timeouts or not all(0 < timeout < math.inf for timeout in timeouts):
            return None
        return min(timeouts)

    def _timeout(self) -> float | None:
        if self.path not in _ANSWERS:
            return None
        try:
            return _timed.decode(self.body).timeout
        except msgspec.MsgspecError:
            return None

    def _task(self) -> str:
        if self.path in _BY_MODEL:
            try:
                return _named.decode(self.body).model
            except msgspec.MsgspecError:
                return ""  # whichever replica gets it says what is wrong
        if self.path.startswith(_ADAPTERS):
            return unquote(self.path.removeprefix(_ADAPTERS).partition("/")[0])
        return parse_qs(self.query).get("task", [""])[0]


@dataclass(frozen=True, slots=True)
class Head:
    """How a replica's answer begins."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None = None
    """All of it; None: its parts follow."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Instead of an answer: the replica's server or engine is down, and another replica may be asked."""

    replica: str
    reached: bool = True
    """Whether the server may have had the request. Where nobody took the connection, it can't have."""
