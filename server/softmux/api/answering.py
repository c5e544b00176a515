"""How a generating request is answered, on whatever route: read, resolved, run, and told in the route's shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from softmux.api import sse
from softmux.api.auth import principal_of
from softmux.api.choice import Choice, Piece, joined
from softmux.api.deadline import deadline_of
from softmux.api.generation import Generation
from softmux.api.presence import ClientGone, watching
from softmux.api.services import Services, services_of
from softmux.api.shape import Shape
from softmux.api.wish import Given, Wish
from softmux.errors import InternalError, Overloaded, SoftmuxError
from softmux.telemetry.exposition import BARE
from softmux.telemetry.labels import OTHER

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it was read. `task` None is the bare model."""

    task: str | None
    wish: Wish
    given: Given
    shape: Shape
    stream: bool
    timeout: float | None
    said: Mapping[str, Any]
    """What of it is logged where prompts are."""


async def answer(request: Request, read: Callable[[Services], Awaitable[Asked]], *, bare: bool = False) -> Response:
    """The answer to what `read` finds in the request. Raises every error that comes before the first byte.

    `bare`: it is known before reading that no task is asked for.
    """
    services = services_of(request)
    began = time.monotonic()
    tenant = principal_of(request).tenant
    label = BARE if bare else OTHER  # until it is known that there is such a task
    asked = None
    try:
        if services.draining:
            services.metrics.refused("draining")
            raise Overloaded("The server is shutting down; send the request to another one.", retry_after=5.0)
        asked = await read(services)
        if services.settings.log_prompts:
            log.info("asked", tenant=tenant, task=asked.task, **asked.said)
        deadline = deadline_of(request, asked.timeout, began)
        resolved = services.resolve(tenant, asked.task)
        label = services.metrics.task_label(tenant, resolved.adapter.task if resolved.adapter else None)
        generation = await Generation.start(
            services,
            resolved,
            asked.wish,
            asked.given,
            label=label,
            began=began,
            id_prefix=asked.shape.id_prefix,
            deadline=deadline,
        )
    except SoftmuxError as error:
        services.metrics.request(label, error.code, time.monotonic() - began)
        raise _said(error, asked) from None
    try:
        return await (_streamed if asked.stream else _whole)(request, generation, asked)
    except BaseException as error:
        generation.outcome = _outcome(error)
        generation.end()
        if isinstance(error, ClientGone):
            return Response(status_code=499)
        if isinstance(error, SoftmuxError):
            raise _said(error, asked) from None
        raise


class WholeReply(Response):
    """Ends its request once it is on its way: rows that began together end together, and each of their clients would
    wait for the counting of all. The event loop sends what was written at the end of its turn, and takes up the request
    again before it reads anything more: whoever has the reply finds it counted."""

    def __init__(self, body: bytes, generation: Generation) -> None:
        super().__init__(body, headers=generation.charge.headers, media_type="application/json")
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
            self._generation.outcome = "ok"
            await asyncio.sleep(0)
        finally:
            self._generation.end()


class StreamedReply(sse.EventStream):
    """Ends its request once its last event is on its way, as `WholeReply` does. The events say what it came to."""

    def __init__(self, events: AsyncGenerator[bytes, None], generation: Generation) -> None:
        super().__init__(events, generation.charge.headers)
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
            await asyncio.sleep(0)
        finally:
            self._generation.end()


async def _whole(request: Request, generation: Generation, asked: Asked) -> Response:
    pieces: dict[int, list[Piece]] = {choice.index: [] for choice in generation.choices}
    with watching(request, generation.leave):
        async for news in generation.pieces(whole=True):
            for choice, piece in news:
                pieces[choice.index].append(piece)
        if generation.left:
            raise ClientGone
        generation.settle()
        reply = asked.shape.whole(generation, [joined(pieces[choice.index]) for choice in generation.choices])
        return WholeReply(msgspec.json.encode(reply), generation)


async def _streamed(request: Request, generation: Generation, asked: Asked) -> Response:
    """Waits for the first news, so that what fails before has its own status; then the rest follows as events."""
    news = generation.pieces()
    with watching(request, generation.leave):
        begin: list[tuple[Choice, Piece]] = await anext(news, [])
    if generation.left:
        raise ClientGone

    async def events() -> AsyncGenerator[bytes, None]:
        """One item a wake-up, however many events it is, the last with the end."""
        told = asked.shape.events(generation)
        running = {choice.index for choice in generation.choices}
        try:
            with watching(request, generation.leave):
                part = begin
                while part:
                    ready: list[bytes] = []
                    for choice, piece in part:
                        if piece.finish_reason is not None:
                            running.discard(choice.index)
                        usage = None
                        if not running:
                            generation.settle()
                            usage = generation.usage
                        if shown := told.news(choice, piece, usage):
                            ready.append(shown)
                    if not running:
                        break
                    if ready:
                        yield b"".join(ready)
                    part = await anext(news, [])
                if not generation.left:
                    yield b"".join((*ready, sse.DONE))
                    generation.outcome = "ok"
        except SoftmuxError as error:
            generation.outcome = _outcome(error)
            yield sse.error_event(_said(error, asked)) + sse.DONE
        except Exception as error:
            generation.outcome = _outcome(error)
            raise

    return StreamedReply(events(), generation)


def _outcome(error: BaseException) -> str:
    """What a request counts as that ended by it."""
    if isinstance(error, SoftmuxError):
        return error.code
    return InternalError.code if isinstance(error, Exception) and not isinstance(error, ClientGone) else "gone"


def _said(error: SoftmuxError, asked: Asked | None) -> SoftmuxError:
    """The error in the route's words."""
    return error if asked is None else asked.shape.in_its_words(error)
