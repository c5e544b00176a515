"""An HTTP request on its way from the ingress to a replica, what it is routed by, and whether it may be sent twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote

import msgspec

_ANSWERS = frozenset({"/v1/generate", "/v1/classify", "/v1/completions", "/v1/chat/completions"})
"""POST routes that change nothing."""
_BY_MODEL = frozenset({"/v1/completions", "/v1/chat/completions"})
_ADAPTERS = "/v1/adapters/"
_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT"})
"""DELETE is none of them: sent again after it was done, it would answer 404."""


class _Named(msgspec.Struct):
    model: str = ""


_named = msgspec.json.Decoder(_Named)


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
    """How a replica's answer begins; its body's parts follow."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Instead of an answer: the replica's server or engine is down, and another replica may be asked."""

    replica: str
    reached: bool = True
    """Whether the server may have had the request. Where nobody took the connection, it can't have."""
