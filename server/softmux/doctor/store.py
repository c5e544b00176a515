"""The registry's Redis: reachable, new enough, lasting, never evicting, writable."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

from softmux.doctor.check import Check, fail, ok, size, warn
from softmux.settings import Settings

_OLDEST = (7, 0)
_SECONDS = 3.0


def redis(settings: Settings) -> Iterator[Check]:
    if settings.redis is None:
        yield from _embedded()
        return
    import redis as library

    from softmux.errors import RegistryDown
    from softmux.registry.addresses import shown
    from softmux.registry.connection import SyncConnection

    try:
        SyncConnection(settings.redis).close()
    except RegistryDown as error:
        yield fail("redis", "--redis is no address", error.message)
        return
    where = shown(settings.redis)
    try:
        client: Any = library.Redis.from_url(
            settings.redis, socket_timeout=_SECONDS, socket_connect_timeout=_SECONDS, decode_responses=True
        )
        client.ping()
    except library.exceptions.AuthenticationError as error:
        yield fail("redis", f"{where}: {error}", "put user and password into the URL: redis://USER:PASSWORD@…")
        return
    except (library.exceptions.RedisError, ValueError, OSError) as error:
        yield fail("redis", f"{where} does not answer: {error}", "start it, or correct --redis (redis://HOST:6379/0)")
        return
    try:
        yield from _server(client, where)
        yield from _writes(client)
    finally:
        client.close()


def _embedded() -> Iterator[Check]:
    from softmux.errors import RegistryDown
    from softmux.registry.embedded import server_binary

    try:
        yield ok("redis", f"embedded ({server_binary()}), its append-only file under --data")
    except RegistryDown as error:
        yield fail("redis", "no embedded server", error.message)


def _server(client: Any, where: str) -> Iterator[Check]:
    info = client.info()
    version = str(info.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    shown = f"{where}, version {version}, {size(int(info.get('used_memory', 0)))} in use"
    if info.get("role") != "master":
        yield fail("redis", f"{where} is a replica", "give the primary's address: a registry is written")
    elif numbers < _OLDEST:
        yield fail("redis", shown, "update it to 7 or later, or take any Valkey")
    else:
        yield ok("redis", shown)
    yield _persistence(client, info)
    yield _memory(client, info)


def _setting(client: Any, name: str) -> str | None:
    """A setting's value; None where the server does not tell, as managed ones."""
    import redis as library

    try:
        return next(iter(client.config_get(name).values()), None)
    except library.exceptions.ResponseError:
        return None


def _persistence(client: Any, info: Any) -> Check:
    fsync = _setting(client, "appendfsync")
    if not info.get("aof_enabled"):
        return warn("persistence", "no append-only file: tasks published since the last snapshot are lost with Redis",
                    "`CONFIG SET appendonly yes`, in its redis.conf too; or `softmux registry backup`")  # fmt: skip
    if info.get("aof_last_write_status", "ok") != "ok":
        return fail("persistence", "its last write to the append-only file failed", "free its disk, and see Redis' log")
    if fsync not in (None, "always"):
        return warn(
            "persistence",
            f"appendfsync {fsync}: the last changes may be lost with Redis, acknowledged ones too",
            "`CONFIG SET appendfsync always`, in its redis.conf too",
        )
    return ok("persistence", f"append-only file, appendfsync {fsync or 'not told'}")


def _memory(client: Any, info: Any) -> Check:
    policy = info.get("maxmemory_policy") or _setting(client, "maxmemory-policy") or "noeviction"
    most, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    shown = f"maxmemory {size(most) if most else 'none'}, policy {policy}"
    if policy != "noeviction" and most:
        return fail("eviction", shown, "`CONFIG SET maxmemory-policy noeviction`: others let Redis throw tasks away")
    if most and used > 0.8 * most:
        return warn("eviction", f"{shown}, {used / most:.0%} in use", "raise maxmemory: full, it refuses changes")
    return ok("eviction", shown)


def _writes(client: Any) -> Iterator[Check]:
    import redis as library

    key = f"softmux:doctor:{secrets.token_hex(8)}"
    try:
        wrote = client.eval("redis.call('SET', KEYS[1], '1', 'EX', 10) return redis.call('DEL', KEYS[1])", 1, key)
    except library.exceptions.RedisError as error:
        yield fail("writing", f"refused: {error}", "let the user read, write and run scripts on softmux:*")
        return
    yield (
        ok("writing", "a script wrote and deleted a key")
        if wrote == 1
        else fail(
            "writing", "a key that was written was not there", "is this a proxy, or a cluster? softmux takes one Redis"
        )
    )
