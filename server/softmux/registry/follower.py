"""Keeps a process's views of the registry current: by the change stream, with the change counter as the truth."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from softmux.errors import RegistryDown
from softmux.registry.connection import Connection
from softmux.registry.keyspace import CHANGES, ID, SEQ

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """`kind` is `task`, `tenant` or `keys`; `task` is empty but for a task."""

    kind: str
    tenant: str
    task: str


class View(Protocol):
    """Something in memory that mirrors a part of Redis. Called by one follower, one call at a time."""

    async def reload(self) -> None:
        """Reads everything anew; until it is done, the view stays what it was."""

    async def apply(self, changes: Sequence[Change]) -> None:
        """Reads again what the changes name."""

    def confirm(self) -> None:
        """The view was just seen to be current."""


class Follower:
    """Reads the stream from where its views are. Whenever that does not join up (a gap, entries trimmed, a registry
    put back to an older state or another one), the views are read anew."""

    def __init__(self, url: str, views: Sequence[View], *, poll: float = POLL_SECONDS) -> None:
        self._connection = Connection(url, budget=0.0, read_timeout=poll + 1.5)
        self._views = views
        self._poll = poll
        self._registry: bytes | None = None
        self._seen = -1
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Returns once the views are loaded; then follows until `stop`. Raises `RegistryDown`."""
        await self._check()
        self._task = asyncio.create_task(self._follow(), name="registry-follower")

    async def stop(self) -> None:
        self._stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._connection.close()

    async def _follow(self) -> None:
        down_since: float | None = None
        while not self._stopping:  # a cancellation may end as a time-out inside redis-py
            try:
                await self._step()
                if down_since is not None:
                    log.warning("the registry answers again after %.1f s", time.monotonic() - down_since)
                    down_since = None
            except RegistryDown as error:
                if down_since is None:
                    down_since = time.monotonic()
                    log.warning("following the registry stopped, going on from memory: %s", error.message)
                await asyncio.sleep(self._poll / 2)
            except Exception:
                log.exception("following the registry failed; trying again")
                await asyncio.sleep(self._poll)

    async def _step(self) -> None:
        start = f"{self._seen}-0"
        reply: list[Any] = await self._connection.call(
            lambda client: client.xread({CHANGES: start}, count=1000, block=int(self._poll * 1000))
        )
        entries = reply[0][1] if reply else []
        if entries and int(entries[0][0].split(b"-")[0]) == self._seen + 1:
            changes = [
                Change(*(fields[name].decode() for name in (b"kind", b"tenant", b"task"))) for _, fields in entries
            ]
            distinct = list(dict.fromkeys(changes))
            for view in self._views:
                await view.apply(distinct)
                view.confirm()
            self._seen = int(entries[-1][0].split(b"-")[0])
        await self._check()

    async def _check(self) -> None:
        """Compares with the truth; where the views aren't at it and the stream doesn't lead there, reloads them."""
        registry, counter = await self._connection.call(lambda client: client.mget(ID, SEQ))
        current = int(counter or 0)
        if registry != self._registry or current < self._seen or (current > self._seen and await self._gap()):
            for view in self._views:
                await view.reload()  # changes from here on are in the stream, beyond `current`
            self._registry, self._seen = registry, current
        if current == self._seen:
            for view in self._views:
                view.confirm()

    async def _gap(self) -> bool:
        """Whether the stream lacks the change after the last one seen."""
        wanted = f"{self._seen + 1}-0"
        return not await self._connection.call(lambda client: client.xrange(CHANGES, wanted, wanted))
