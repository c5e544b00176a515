"""How softmux talks to Redis: one way for `redis://`, `rediss://` and the embedded server's `unix://`.

Every operation has a time budget. Within it a lost connection is made anew, with jitter; beyond it the caller gets
`RegistryDown`. Operations may so be sent twice: each of the registry's writes is made to bear that. Replies are bytes
and untyped here (redis-py's own types allow for text and RESP3 everywhere); callers name what they expect.
"""

from __future__ import annotations

import asyncio
import functools
import random
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, AuthorizationError, RedisError, ResponseError
from redis.retry import Retry

from softmux.errors import RegistryDown
from softmux.registry.addresses import shown
from softmux.registry.keyspace import ID

T = TypeVar("T")

BUDGET = 0.9
"""Seconds an operation may take, retries included, before the registry counts as down: a write is so refused within
a second."""


_ANSWERS: dict[str, tuple[str, str]] = {
    "OOM": ("has no memory left", "raise its maxmemory, or delete tasks (softmux never lets Redis evict)"),
    "MISCONF": ("can't write to its disk", "free space there, and see Redis' own log"),
    "READONLY": ("is a read-only replica", "point softmux at the primary, or promote this one"),
    "MASTERDOWN": ("is a replica without its primary", "bring the primary back, or promote this one"),
    "NOREPLICAS": ("has too few replicas to take writes", "bring its replicas back"),
    "CLUSTERDOWN": ("is a Redis Cluster that is down", "give softmux one primary: it keeps a registry on one server"),
    "MOVED": ("is a Redis Cluster", "give softmux one primary: it keeps a registry on one server"),
    "CROSSSLOT": ("is a Redis Cluster", "give softmux one primary: it keeps a registry on one server"),
    "LOADING": ("is still loading its data", "wait until it has; a large registry takes a while"),
    "BUSY": ("is kept busy by someone's script", "see `SLOWLOG GET`; `SCRIPT KILL` ends one that has written nothing"),
    "NOAUTH": ("asks for a password", "put it into the URL: redis://:PASSWORD@…"),
    "WRONGPASS": ("refuses the user or the password", "correct them in the URL"),
    "NOPERM": ("does not let this user do that", "let the user read, write and run scripts on softmux:*"),
    "max number of clients": ("has too many clients", "raise its maxclients"),
}
"""What Redis answers, and in words: what is the matter, what to do."""
_NONE_THERE = "NOREGISTRY"
"""What a script answers where it finds none."""
_OF_THE_SERVER = ("READONLY", "MASTERDOWN")
"""After a failover, another server behind the same address does not say so."""
_MAY_PASS = (*_OF_THE_SERVER, "CLUSTERDOWN", "NOREPLICAS", "BUSY", "max number of clients")
"""Such an answer may be another one within the budget."""


def _code(error: Exception) -> str:
    """Which of `_ANSWERS` it is; empty for none. redis-py keeps the code of errors it knows beside the text."""
    code = getattr(error, "status_code", None)
    if code in _ANSWERS:
        return str(code)
    return next((code for code in _ANSWERS if re.search(rf"\b{code}\b", str(error))), "")


def _down(url: str, error: Exception) -> RegistryDown:
    if _NONE_THERE in str(error):
        return RegistryWiped(url)
    code = _code(error)
    if code:
        what, advice = _ANSWERS[code]
        said = what
    else:
        what, advice = "does not answer", "check that Redis runs and is reachable"
        said = f"{what} ({str(error) or type(error).__name__})"
    meanwhile = "requests for tasks already known go on, changes have to be sent again"
    return RegistryDown(
        f"the registry at {shown(url)} {said}: {advice}; {meanwhile}",
        public=f"the registry {what}: try again shortly; {meanwhile}",
    )


@functools.cache
def _guarded(text: str) -> str:
    """The script, which takes the registry's id as one more key, and does nothing where it is missing."""
    flags, rest = text.split("\n", 1) if text.startswith("#!") else ("", text)
    guard = f"if redis.call('EXISTS', table.remove(KEYS)) == 0 then return redis.error_reply('{_NONE_THERE}') end"
    return f"{flags}\n{guard}\n{rest}" if flags else f"{guard}\n{rest}"


class RegistryWiped(RegistryDown):
    """A Redis answers, and has no registry."""

    def __init__(self, url: str) -> None:
        super().__init__(
            f"there is no registry at {shown(url)}: it was wiped, or Redis came back without its data. Put a backup "
            "back (`softmux registry restore`); or begin anew by starting a server, after which servers that run "
            "forget what they still serve",
            public="there is no registry at present: requests for tasks already known go on, changes have to be sent "
            "again once whoever runs the server has put it back",
        )


def _no_address() -> RegistryDown:
    """Tells nothing of the URL: where it can't be read, nobody knows which part of it is the password."""
    return RegistryDown(
        "what is given as Redis' URL is none: write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH, and what is "
        "special in a password as %-escapes"
    )


def _check_options(client: Any) -> None:
    """Raises `TypeError` or `ValueError` for what a URL's query asks for and no connection has. Connects to nothing."""
    pool = client.connection_pool
    pool.connection_class(
        **pool.connection_kwargs
    )  # not the pool's own way, which would count it among its connections


def _final(error: Exception) -> bool:
    """Whether trying again within the budget is pointless."""
    if _code(error) in _MAY_PASS:
        return False
    return isinstance(error, (AuthenticationError, AuthorizationError, ResponseError))


def _pause(attempt: int) -> float:
    return random.uniform(0.01, 0.05 * min(attempt, 4))  # noqa: S311 - jitter, no secret


class Connection:
    """A pool of connections for one event loop. `read_timeout` (s) bounds one reply, blocking reads included; both are
    `BUDGET` where nothing is said. Raises `RegistryDown` where `url` is no address."""

    def __init__(self, url: str, *, budget: float | None = None, read_timeout: float | None = None) -> None:
        budget = BUDGET if budget is None else budget
        read_timeout = BUDGET if read_timeout is None else read_timeout
        self.url = url
        self.wiped = False
        """Where set, every call is refused: what answers now must not be taken for the registry."""
        self._budget = budget
        self._limit = max(budget, read_timeout)
        retry = AsyncRetry(NoBackoff(), 0)
        # protocol 2: one shape of replies, whatever the server speaks beyond it.
        try:
            self._client = redis.asyncio.Redis.from_url(
                url,
                socket_timeout=read_timeout,
                socket_connect_timeout=min(read_timeout, BUDGET),
                retry=retry,
                protocol=2,
            )
            _check_options(self._client)
        except (TypeError, ValueError):
            raise _no_address() from None

    async def call(self, operation: Callable[[Any], Awaitable[Any]]) -> Any:
        """`operation`'s result; it may be run again after a lost connection. Raises `RegistryDown`."""
        if self.wiped:
            raise RegistryWiped(self.url)
        started = time.monotonic()
        attempt = 0
        while True:
            try:
                # Each read has its time-out; this one bounds a server that answers every one of them late.
                async with asyncio.timeout(self._limit - (time.monotonic() - started)):
                    return await operation(self._client)
            except (RedisError, OSError) as error:
                attempt += 1
                pause = _pause(attempt)
                if _code(error) in _OF_THE_SERVER:  # behind the address another server may answer by now
                    await self._client.connection_pool.disconnect(inuse_connections=False)
                if _final(error) or time.monotonic() + pause > started + self._budget:
                    raise _down(self.url, error) from error
            await asyncio.sleep(pause)

    async def script(self, text: str, keys: list[str], args: list[Any], *, begins: bool = False) -> Any:
        """Runs a Lua script, as `call` does. Where no registry is, which a process may yet have to notice, it does
        nothing, and `RegistryWiped` is raised; but for one that `begins` a registry."""
        if not begins:
            text, keys = _guarded(text), [*keys, ID]
        return await self.call(lambda client: client.register_script(text)(keys=keys, args=args))

    async def check_there(self) -> bytes:
        """The registry's id. Raises `RegistryWiped` where none is there."""
        registry: bytes | None = await self.call(lambda client: client.get(ID))
        if registry is None:
            raise RegistryWiped(self.url)
        return registry

    async def mirrored(self, read: Callable[[], Awaitable[T]]) -> T:
        """What `read` gives, for memory to mirror: that a registry holds nothing, and that none was there to be read,
        look the same. Raises `RegistryWiped` unless one and the same was there before and after."""
        before = await self.check_there()
        found = await read()
        if await self.check_there() != before:  # wiped, and a backup put back, meanwhile
            raise RegistryWiped(self.url)
        return found

    async def close(self) -> None:
        await self._client.aclose()


class SyncConnection:
    """The same for threads, without an event loop. Thread-safe. Raises `RegistryDown` likewise."""

    def __init__(self, url: str, *, budget: float | None = None) -> None:
        budget = BUDGET if budget is None else budget
        self.url = url
        self._budget = budget
        try:
            self._client = redis.Redis.from_url(
                url,
                socket_timeout=budget,
                socket_connect_timeout=budget,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
            _check_options(self._client)
        except (TypeError, ValueError):
            raise _no_address() from None

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
                if _code(error) in _OF_THE_SERVER:
                    self._client.connection_pool.disconnect(inuse_connections=False)
                if _final(error) or time.monotonic() + pause > deadline:
                    raise _down(self.url, error) from error
            time.sleep(pause)

    def check_there(self) -> None:
        """Raises `RegistryWiped` where no registry is there."""
        if self.call(lambda client: client.get(ID)) is None:
            raise RegistryWiped(self.url)

    def close(self) -> None:
        self._client.close()
