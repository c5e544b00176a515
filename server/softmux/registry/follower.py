"""Keeps a process's views of the registry current: by the change stream, with the change counter as the truth."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from softmux.errors import RegistryDown
from softmux.registry.connection import Connection, RegistryWiped
from softmux.registry.keyspace import CHANGES, ID, SEQ

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
_LONGEST_PAUSE = 2.0
"""Seconds between two tries to reach Redis at most: with it, what changed meanwhile counts within 5 s of its return."""


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
    """Reads the stream from where its views are. Whenever that does not join up (a gap, entries trimmed, another
    registry, or one put back to an older state, as by a failover: then the entry last seen is not there, or another),
    the views are read anew.

    An address without a registry (wiped, or a Redis that came back without its data) is no truth: the views stay as
    they are, as while it is away. `told` hears after each look: why the registry is away, or None.
    """

    def __init__(
        self,
        url: str,
        views: Sequence[View],
        *,
        poll: float = POLL_SECONDS,
        told: Callable[[RegistryDown | None], None] = lambda _: None,
    ) -> None:
        self._connection = Connection(url, budget=0.0, read_timeout=poll + 1.5)
        self._views = views
        self._poll = poll
        self._registry: bytes | None = None
        self._seen = -1
        self._mark: object = None
        """The stream's entry of the change last seen."""
        self._told = told
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
        said = ""
        failures = 0
        while not self._stopping:  # a cancellation may end as a time-out inside redis-py
            try:
                await self._step()
                if down_since is not None:
                    log.warning("the registry answers again after %.1f s", time.monotonic() - down_since)
                down_since, said, failures = None, "", 0
                continue
            except RegistryDown as error:
                down_since = down_since or time.monotonic()
                if error.message != said:
                    said = error.message
                    say = log.error if isinstance(error, RegistryWiped) else log.warning
                    say("following the registry stopped, going on from memory: %s", said)
                self._told(error)
            except Exception:
                log.exception("following the registry failed; trying again")
            failures += 1
            longest = min(_LONGEST_PAUSE, self._poll * 2 ** min(failures - 1, 8))
            await asyncio.sleep(random.uniform(0.2 * longest, longest))  # noqa: S311 - jitter, no secret

    async def _step(self) -> None:
        start = f"{self._seen}-0"
        reply: list[Any] = await self._connection.call(
            lambda client: client.xread({CHANGES: start}, count=1000, block=int(self._poll * 1000))
        )
        await self._check(reply[0][1] if reply else [])

    async def _check(self, entries: Sequence[Any] = ()) -> None:
        """Compares with the truth: applies what the stream has (`entries`, beyond what was seen) where it joins up
        with what the views are, and reloads them where it does not lead to the present."""
        registry, current, mark = await self._truth(self._seen)
        self._told(None)  # now, as the views are about to read
        same = registry == self._registry and current >= self._seen and mark == self._mark
        if same and entries and _number(entries[0]) == self._seen + 1:
            fields = [entry[1] for entry in entries]
            changes = [Change(*(told[name].decode() for name in (b"kind", b"tenant", b"task"))) for told in fields]
            for view in self._views:
                await view.apply(list(dict.fromkeys(changes)))
            self._seen, self._mark = _number(entries[-1]), entries[-1]
        elif not same or (current > self._seen and await self._gap()):
            if self._registry is not None:
                log.warning("the registry is not as this process last saw it: reading all of it")
            for view in self._views:
                await view.reload()  # changes from here on are in the stream, beyond `current`
            if self._registry not in (None, registry):
                log.error("it is another registry than before: what the former had is no longer served")
            self._registry, self._seen = registry, current
            _, _, self._mark = await self._truth(current)
        if self._seen >= current:
            for view in self._views:
                view.confirm()

    async def _truth(self, seen: int) -> tuple[bytes, int, object]:
        """The registry's id, its counter, and the stream's entry of the change `seen`, None where there is none.

        Raises `RegistryWiped`.
        """

        async def read(client: Any) -> Any:
            async with client.pipeline(transaction=True) as pipe:
                pipe.mget(ID, SEQ)
                pipe.xrange(CHANGES, f"{max(seen, 0)}-0", f"{max(seen, 0)}-0")
                return await pipe.execute()

        (registry, counter), entries = await self._connection.call(read)
        if registry is None:
            raise RegistryWiped(self._connection.url)
        return registry, int(counter or 0), entries[0] if entries else None

    async def _gap(self) -> bool:
        """Whether the stream lacks the change after the last one seen."""
        wanted = f"{self._seen + 1}-0"
        return not await self._connection.call(lambda client: client.xrange(CHANGES, wanted, wanted))


def _number(entry: Any) -> int:
    """The change's number, of its entry in the stream."""
    return int(entry[0].split(b"-")[0])
