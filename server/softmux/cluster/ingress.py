"""What clients reach: reads a request, has it routed, passes the answer on as it comes, and asks another replica where
the first was lost before any byte of its answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import msgspec
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp, Receive, Scope, Send

from softmux.api.errors import error_body
from softmux.cluster.call import Call, Head, Lost
from softmux.cluster.turn import Asked, Turn
from softmux.errors import EngineDown, SoftmuxError, TooLarge

_TRIES = 4
"""A request is had by no more replicas than this: it may be what they die of."""
_PATIENCE_SECONDS = 5.0
"""Where all replicas that it knows are lost, another may be there already: routers hear of it a moment later."""
_PAUSE_SECONDS, _LONGEST_PAUSE = 0.05, 1.0


class Gateway:
    """An ASGI application. `ask` sends a call to a replica that the router chooses, as `Replica.answer` is called; for
    one that has room a call waits `queue_seconds`."""

    def __init__(
        self,
        ask: Callable[..., Asked],
        max_body_bytes: int,
        queue_seconds: float,
        *,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        self._ask, self._turn = ask, Turn(queue_seconds)
        self._max_body_bytes = max_body_bytes
        self._patience = patience
        self.repeated = 0
        """Requests that a lost replica had, sent to another."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        begun = False
        try:
            call = await self._read(scope, receive)
            async for part in self._answered(call):
                if isinstance(part, Head):
                    begun = True
                    await send({"type": "http.response.start", "status": part.status, "headers": list(part.headers)})
                    if part.body is not None:
                        await send({"type": "http.response.body", "body": part.body, "more_body": False})
                        return
                else:
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except SoftmuxError as error:
            if begun:
                raise  # the connection is cut: the client sees that its answer has no end
            await _refuse(error, send)

    async def _read(self, scope: Scope, receive: Receive) -> Call:
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise EngineDown("the client left")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._max_body_bytes:
                raise TooLarge(f"the request has more than {self._max_body_bytes:,} bytes: send less at once")
            if not message.get("more_body"):
                break
        path = scope.get("raw_path", b"").decode("latin-1") or scope["path"]
        query = scope["query_string"].decode("latin-1")
        return Call(
            scope["method"], path.partition("?")[0], query, tuple(map(tuple, scope["headers"])), b"".join(parts)
        )

    async def _answered(self, call: Call) -> AsyncGenerator[Any]:
        """The `Head`, then the body's parts. Raises `EngineDown` where nobody answered, or somebody did not finish, and
        as `Turn.of` does where nobody had room."""
        key, came, first = call.key(), time.monotonic(), call
        search = _Search(call.may_repeat(), came + self._patience)
        while True:
            head, begun, lost = None, False, None
            try:
                asked = self._ask(call, key=key, without=search.lost)
                async for part in self._turn.of(asked, call.deadline()):
                    if isinstance(part, Lost):
                        lost = part
                        break
                    if isinstance(part, Head):
                        if part.body is not None:
                            yield part
                            return  # whatever becomes of the replica
                        head = part  # told with what follows: until then another replica may answer
                        continue
                    if head is not None:
                        yield head
                        head, begun = None, True
                    yield part
                else:
                    if head is not None:
                        yield head
                    return
            except (RayError, RayServeException):  # Serve passes over an actor that died by itself
                if begun:
                    break
            if not await search.goes_on(lost):
                break
            self.repeated += 1
            call = first.after(time.monotonic() - came)
        raise EngineDown("the replica that had the request was lost: send it again", retry_after=1, begun=search.had_it)


class _Search:
    """For somebody who answers one request, after replicas that were lost with it. Waits for none beyond `ends`,
    monotonic."""

    def __init__(self, may_repeat: bool, ends: float) -> None:
        self._may_repeat = may_repeat
        self._ends = ends
        self._pause = _PAUSE_SECONDS
        self._had = 0
        self._lost: list[str] = []

    @property
    def lost(self) -> tuple[str, ...]:
        """Replicas to pass over, the one that was asked last at the end."""
        return tuple(self._lost)

    @property
    def had_it(self) -> bool:
        """Whether any of them may have begun it."""
        return self._had > 0

    async def goes_on(self, lost: Lost | None) -> bool:
        """Whether to ask again, after `lost` (None: it died, and Serve knows it). Takes its time where all that there
        are have been asked."""
        if lost is None or lost.reached:
            self._had += 1
            if not self._may_repeat or self._had >= _TRIES:
                return False
        if lost is None:
            return True
        if lost.replica in self._lost:
            if time.monotonic() > self._ends:
                return False
            self._lost.remove(lost.replica)
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self._lost.append(lost.replica)
        return True


@serve.ingress()
class Ingress:
    """A Serve deployment: the gateway to another deployment's replicas."""

    def __init__(self, replicas: DeploymentHandle, max_body_bytes: int, queue_seconds: float) -> None:
        # by reference, whatever Serve's own choice: else it can't be asked whether a replica has a request
        ask = replicas.options(method_name="answer", stream=True, _by_reference=True).remote
        self._gateway = Gateway(ask, max_body_bytes, queue_seconds)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._gateway


async def _refuse(error: SoftmuxError, send: Send) -> None:
    headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": msgspec.json.encode(error_body(error)), "more_body": False})


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
