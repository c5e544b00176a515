"""How softmux talks to Redis: one way for `redis://`, `rediss://` and the embedded server's `unix://`.

Every operation has a time budget. Within it a lost connection is made anew, with jitter; beyond it the caller gets
`RegistryDown`. Operations may so be sent twice: each of the registry's writes is made to bear that. Replies are bytes
and untyped here (redis-py's own types allow for text and RESP3 everywhere); callers name what they expect.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.retry import Retry

from softmux.errors import RegistryDown

BUDGET = 1.0
"""Seconds an operation may take, retries included, before the registry counts as down."""


def shown(url: str) -> str:
    """`url` without its credentials and options."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"


def _down(url: str, error: Exception) -> RegistryDown:
    reason = str(error) or type(error).__name__
    return RegistryDown(
        f"the registry at {shown(url)} does not answer ({reason}): check that Redis runs and is reachable; "
        "requests for tasks already known go on, changes have to be sent again"
    )


def _final(error: Exception) -> bool:
    """Whether trying again within the budget is pointless."""
    return isinstance(error, (AuthenticationError, AuthorizationError, ResponseError))


def _pause(attempt: int) -> float:
    return random.uniform(0.01, 0.05 * min(attempt, 4))  # noqa: S311 - jitter, no secret


class Connection:
    """A pool of connections for one event loop. `read_timeout` (s) bounds one reply, blocking reads included."""

    def __init__(self, url: str, *, budget: float = BUDGET, read_timeout: float = BUDGET) -> None:
        self.url = url
        self._budget = budget
        retry = AsyncRetry(NoBackoff(), 0)
        # protocol 2: one shape of replies, whatever the server speaks beyond it.
        self._client = redis.asyncio.Redis.from_url(
            url,
            socket_timeout=read_timeout,
            socket_connect_timeout=min(read_timeout, BUDGET),
            retry=retry,
            protocol=2,
        )

    async def call(self, operation: Callable[[Any], Awaitable[Any]]) -> Any:
        """`operation`'s result; it may be run again after a lost connection. Raises `RegistryDown`."""
        deadline = time.monotonic() + self._budget
        attempt = 0
        while True:
            try:
                return await operation(self._client)
            except (RedisError, OSError) as error:
                attempt += 1
                pause = _pause(attempt)
                if _final(error) or time.monotonic() + pause > deadline:
                    raise _down(self.url, error) from error
            await asyncio.sleep(pause)

    async def script(self, text: str, keys: list[str], args: list[Any]) -> Any:
        """Runs a Lua script, as `call` does."""
        return await self.call(lambda client: client.register_script(text)(keys=keys, args=args))

    async def close(self) -> None:
        await self._client.aclose()


class SyncConnection:
    """The same for threads, without an event loop. Thread-safe."""

    def __init__(self, url: str, *, budget: float = BUDGET) -> None:
        self.url = url
        self._budget = budget
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=budget,
            socket_connect_timeout=budget,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )

    def call(self, operation: Callable[[Any], Any]) -> Any:
        """`operation`'s result; it may be run again after a lost connection. Raises `RegistryDown`."""
        deadline = time.monotonic() + self._budget
        attempt = 0
        while True:
            try:
                return operation(self._client)
            except (RedisError, OSError) as error:
                attempt += 1
                pause = _pause(attempt)
                if _final(error) or time.monotonic() + pause > deadline:
                    raise _down(self.url, error) from error
            time.sleep(pause)

    def close(self) -> None:
        self._client.close()
