"""A request's wait for a replica: Serve's own has no end where there is none, or where all are full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Protocol

from softmux.errors import DeadlineExceeded, Overloaded

_LOOK_SECONDS = 1.0
"""How long Serve may take to say that a replica has it. It says so at once."""


class Asked(Protocol):
    """What a Serve handle's `remote` gives: parts of an answer, once the router has found a replica."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def __anext__(self) -> Any: ...

    async def _to_object_ref_gen(self) -> Any:
        """Ray's own for developers: returns as soon as a replica has the request."""

    def cancel(self) -> None: ...


class Turn:
    """How long requests wait: `seconds`, each by itself, or until its deadline if that is sooner."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def of(self, asked: Asked, deadline: float | None) -> AsyncIterator[Any]:
        """The parts of the answer, which may begin as late as it likes once a replica has the request. Raises
        `Overloaded`, or `DeadlineExceeded` after `deadline` seconds, where none has it by then: Serve has forgotten it,
        and no replica ever gets it."""
        late = deadline is not None and deadline < self._seconds
        seconds = deadline if deadline is not None and late else self._seconds
        first = asyncio.ensure_future(anext(asked))
        try:
            await asyncio.wait({first}, timeout=seconds)
            if not first.done() and not await _has_a_replica(asked):
                asked.cancel()
                if late:
                    raise DeadlineExceeded(f"no replica took the request within its deadline of {seconds:g} s")
                raise Overloaded(
                    f"no replica took the request within {seconds:g} s: all are full, or none is up; try again later",
                    retry_after=seconds,
                )
            try:
                part = await first
            except StopAsyncIteration:
                return
        finally:
            first.add_done_callback(_heard)
            first.cancel()
        yield part
        async for part in asked:
            yield part


def _heard(first: asyncio.Future[Any]) -> None:
    """What is raised by one that is given up interests nobody: Serve turns the cancelling into an error of its own."""
    if not first.cancelled():
        first.exception()


async def _has_a_replica(asked: Asked) -> bool:
    looking = asyncio.ensure_future(asked._to_object_ref_gen())
    await asyncio.wait({looking}, timeout=_LOOK_SECONDS)
    if looking.done():
        return True  # where it could not be had, the first part raises why
    looking.cancel()
    return False
