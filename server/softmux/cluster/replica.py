"""One replica: an actor of Ray's with a `softmux serve` beside it, to which it passes on what it is asked."""

from __future__ import annotations

import asyncio
import json
import tempfile
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import httpx
from ray import serve
from ray.serve.exceptions import RayServeException

from softmux.cluster.call import Call, Head, Lost
from softmux.cluster.child import ServerProcess

_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"date", b"server"}
)
"""Headers of one connection, not of the request (RFC 9110, 7.6.1), and those that whoever answers sets anew."""
_ENGINE_DOWN = b'"engine_down"'
_NOBODY_THERE = (httpx.ConnectError, httpx.ConnectTimeout)
_WHOLE_BYTES = 1 << 20
"""An answer of so many bytes, told before, is handed on when all of it is there: what is in one piece can be asked for
again, at another replica, until it has come."""


class Replica:
    """A Serve deployment. Its constructor returns when the server is ready: Ray sends nothing before.

    Ray waits for what is under way before it ends a replica that leaves, and `__del__` is how it says that it has.
    """

    def __init__(self, settings: Mapping[str, str], start_seconds: float, drain_seconds: float) -> None:
        self._data = tempfile.TemporaryDirectory(prefix="softmux-replica-")  # the disk tier: worth nothing to another
        self._drain_seconds = drain_seconds
        self._name = _replica_name()
        self._server = ServerProcess({"data": self._data.name, **settings})
        try:
            self._server.wait_ready(start_seconds)
        except BaseException:
            self._server.stop(0)
            raise
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=4)
        self._http = httpx.AsyncClient(base_url=self._server.url, limits=limits, timeout=httpx.Timeout(None, connect=5))

    async def answer(self, call: Call, key: str | None = None, without: tuple[str, ...] = ()) -> AsyncGenerator[Any]:
        """A `Head`, and its body's parts as bytes where it has none; or `Lost` alone, where server or engine are down.

        `key` and `without` are for the router, which has read them. A stream that breaks off raises what HTTPX raises.
        """
        target = f"{call.path}?{call.query}" if call.query else call.path
        headers = [(name, value) for name, value in call.headers if name not in _HOP_BY_HOP]
        request = self._http.build_request(call.method, target, headers=headers, content=call.body)
        try:
            reply = await self._http.send(request, stream=True)
        except httpx.TransportError as error:
            yield Lost(self._name, reached=not isinstance(error, _NOBODY_THERE))
            return
        try:
            raw = ((name.lower(), value) for name, value in reply.headers.raw)
            kept = tuple((name, value) for name, value in raw if name not in _HOP_BY_HOP)
            if int(reply.headers.get("content-length", _WHOLE_BYTES + 1)) <= _WHOLE_BYTES:
                try:
                    body = b"".join([part async for part in reply.aiter_raw()])
                except httpx.TransportError:
                    yield Lost(self._name)
                    return
                if reply.status_code == 503 and _ENGINE_DOWN in body:
                    yield Lost(self._name, reached=_may_have_begun(body))
                    return
                yield Head(reply.status_code, kept, body)
                return
            yield Head(reply.status_code, kept)
            async for part in reply.aiter_raw():
                yield part
        finally:
            await reply.aclose()

    async def check_health(self) -> None:
        """Asked by Ray now and then: where it raises, the replica is ended and another started."""
        if not await asyncio.to_thread(self._server.live):  # a server that hangs must not hold up answers under way
            raise RuntimeError("softmux serve does not answer")

    def __del__(self) -> None:
        if hasattr(self, "_server"):  # it was made
            self._server.stop(self._drain_seconds)
            self._data.cleanup()


def _may_have_begun(body: bytes) -> bool:
    """Whether the engine may have had the request, as an `engine_down` says."""
    try:
        return json.loads(body)["error"].get("begun") is not False
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def _replica_name() -> str:
    try:
        return str(serve.get_replica_context().replica_id.unique_id)
    except RayServeException:  # not in an application, such as in a test
        return uuid.uuid4().hex
