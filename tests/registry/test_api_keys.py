from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from softmux.errors import InvalidRequest, NotFound, RegistryDown
from softmux.registry.connection import Connection
from softmux.registry.keys import Identity, KeyRing
from softmux.registry.registry import Registry
from support.waiting import eventually


def test_a_key_tells_who_holds_it_until_it_is_revoked(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        keys = registry.keys
        assert not keys.has_keys()
        await registry.tenants.create("acme", actor="t")
        key_id, secret = await keys.create_key("acme", "publisher", actor="t")
        assert secret.startswith(f"sk-softmux-{key_id}-")
        assert keys.has_keys()
        assert keys.authenticate(secret) == Identity("acme", "publisher", key_id)
        for wrong in ("", "sk-softmux", secret[:-1], secret + "x", secret.upper(), "schlüssel"):
            assert keys.authenticate(wrong) is None
        await keys.revoke_key(key_id, actor="t")
        assert keys.authenticate(secret) is None
        assert keys.has_keys(), "revoking the last key must not open the server"

    runner.run(story())


def test_roles_contain_the_ones_below() -> None:
    publisher = Identity("default", "publisher", "k")
    assert [publisher.may(role) for role in ("user", "publisher", "admin")] == [True, True, False]


def test_no_secret_is_stored(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> str:
        _, secret = await registry.keys.create_key("default", "admin", actor="t")
        await registry.keys.ensure_admin_key("an admin key from outside")
        return secret

    secret = runner.run(story())
    log = b"".join(path.read_bytes() for path in (tmp_path / "registry").rglob("*.aof"))
    assert b"softmux:keys" in log
    assert secret.rpartition("-")[2].encode() not in log
    assert b"from outside" not in log


def test_what_a_key_can_not_be_made_of(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        with pytest.raises(NotFound, match="tenant create nobody"):
            await registry.keys.create_key("nobody", "user", actor="t")
        with pytest.raises(InvalidRequest, match="publisher"):
            await registry.keys.create_key("default", "root", actor="t")  # type: ignore[arg-type]
        with pytest.raises(NotFound, match="key list"):
            await registry.keys.revoke_key("nothing", actor="t")

    runner.run(story())


def test_keys_are_listed_without_what_opens(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", actor="t")
        first, secret = await registry.keys.create_key("acme", "user", actor="t")
        second, _ = await registry.keys.create_key("default", "admin", actor="t")
        await registry.keys.revoke_key(second, actor="t")
        listed = await registry.keys.list_keys()
        assert [(key.id, key.tenant, key.role, key.revoked_at is None) for key in listed] == [
            (first, "acme", "user", True),
            (second, "default", "admin", False),
        ]
        assert [key.id for key in await registry.keys.list_keys("acme")] == [first]
        assert secret not in repr(listed)
        assert secret.startswith(listed[0].prefix)

    runner.run(story())


def test_the_admin_key_from_outside(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        keys = registry.keys
        with pytest.raises(InvalidRequest, match="at least 16"):
            await keys.ensure_admin_key("too short")
        await keys.ensure_admin_key("the first admin key")
        before = await keys.list_keys()
        await keys.ensure_admin_key("the first admin key")
        assert await keys.list_keys() == before
        assert keys.authenticate("the first admin key") == Identity("default", "admin", before[0].id)
        await keys.ensure_admin_key("the second admin key")
        assert keys.authenticate("the first admin key") is None
        assert keys.authenticate("the second admin key") is not None
        await keys.revoke_key(before[0].id, actor="t")
        await keys.ensure_admin_key("the second admin key")
        assert keys.authenticate("the second admin key") is None

    runner.run(story())


def test_other_processes_see_keys_and_revocations(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> None:
        other = await Registry.open(None, tmp_path)
        try:
            key_id, secret = await other.keys.create_key("default", "user", actor="t")
            await eventually(registry.keys.has_keys, 30, "the first key counts")
            assert registry.keys.authenticate(secret) == Identity("default", "user", key_id)
            await other.keys.revoke_key(key_id, actor="t")
            await eventually(lambda: registry.keys.authenticate(secret) is None, 30, "the revocation counts")
        finally:
            await other.close()

    runner.run(story())


def test_known_keys_go_on_for_a_bounded_time_without_redis(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        now = 0.0
        ring = KeyRing(connection := Connection(registry.url), grace=300, clock=lambda: now)
        with pytest.raises(RegistryDown):
            ring.authenticate("before anything was read")
        _, secret = await ring.create_key("default", "user", actor="t")
        now = 299.0
        assert ring.authenticate(secret) is not None
        now = 301.0
        with pytest.raises(RegistryDown, match="bring Redis back"):
            ring.authenticate(secret)
        ring.confirm()
        assert ring.authenticate(secret) is not None
        await connection.close()

    runner.run(story())


def test_key_and_version_changes_share_one_counter(registry: Registry, runner: asyncio.Runner) -> None:
    with redis.Redis.from_url(registry.url) as client:
        before = int(client.get("softmux:seq") or 0)
        runner.run(registry.keys.create_key("default", "user", actor="t"))
        assert int(client.get("softmux:seq")) == before + 1
        assert client.xrevrange("softmux:changes", count=1)[0][0] == f"{before + 1}-0".encode()
