from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from registry.registry_fixtures import adapter
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.registry.audit import AuditEntry, AuditLog
from softmux.registry.records import Share
from softmux.registry.registry import Registry

Change = Callable[[Registry], Awaitable[Any]]

CHANGES: list[tuple[Change, str]] = [
    (lambda r: r.tenants.create("acme", actor="a"), "tenant.create"),
    (lambda r: r.tenants.set("acme", weight=2.0, actor="a"), "tenant.set"),
    (lambda r: r.publish("default", "mood", *adapter(1), actor="a"), "task.publish"),
    (lambda r: r.publish("default", "mood", *adapter(2), activate=False, actor="a"), "task.publish"),
    (lambda r: r.publish("default", "mood", *adapter(2), actor="a"), "task.activate"),
    (lambda r: r.publish_if_absent("default", "new", *adapter(1), actor="a"), "task.publish"),
    (lambda r: r.activate("default", "mood", 1, actor="a"), "task.activate"),
    (lambda r: r.share("default", "mood", Share(tenants=("acme",)), actor="a"), "task.share"),
    (lambda r: r.share("default", "mood", Share(everyone=True), actor="a"), "task.share"),
    (lambda r: r.share("default", "mood", None, actor="a"), "task.unshare"),
    (lambda r: r.delete("default", "mood", actor="a"), "task.delete"),
    (lambda r: r.tenants.create("gone", actor="a"), "tenant.create"),
    (lambda r: r.delete_tenant("gone", actor="a"), "tenant.delete"),
    (lambda r: r.keys.create_key("acme", "user", actor="a"), "key.create"),
]
WITHOUT_EFFECT: list[Change] = [
    lambda r: r.tenants.create("default", actor="a"),
    lambda r: r.tenants.create("No", actor="a"),
    lambda r: r.tenants.set("default", weight=1.0, actor="a"),
    lambda r: r.tenants.set("default", weight=-1.0, actor="a"),
    lambda r: r.tenants.set("nobody", weight=2.0, actor="a"),
    lambda r: r.tenants.create("gone", actor="a"),
    lambda r: r.delete_tenant("gone", actor="a"),
    lambda r: r.delete_tenant("acme", actor="a"),
    lambda r: r.delete_tenant("default", force=True, actor="a"),
    lambda r: r.publish("nobody", "mood", *adapter(1), actor="a"),
    lambda r: r.publish("default", "kept", *adapter(1), actor="a"),
    lambda r: r.publish_if_absent("default", "kept", *adapter(2), actor="a"),
    lambda r: r.activate("default", "kept", 1, actor="a"),
    lambda r: r.activate("default", "kept", 2, actor="a"),
    lambda r: r.activate("default", "none", 1, actor="a"),
    lambda r: r.delete("default", "none", actor="a"),
    lambda r: r.share("default", "none", Share(everyone=True), actor="a"),
    lambda r: r.share("default", "kept", None, actor="a"),
    lambda r: r.keys.create_key("nobody", "user", actor="a"),
    lambda r: r.keys.revoke_key("none", actor="a"),
]


async def entries(registry: Registry) -> tuple[AuditEntry, ...]:
    return (await registry.audit.read(limit=10_000)).data


def test_each_change_makes_one_entry_and_what_changes_nothing_none(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        for number, (change, action) in enumerate(CHANGES):
            await change(registry)
            log = await entries(registry)
            assert len(log) == number + 1
            assert (log[-1].action, log[-1].actor) == (action, "a")
        await registry.publish("default", "kept", *adapter(1), actor="a")
        before = await entries(registry)
        for change in WITHOUT_EFFECT:
            with contextlib.suppress(SoftmuxError):
                await change(registry)
            assert await entries(registry) == before

    runner.run(story())


def test_an_entry_says_who_what_and_when(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        manifest, files = adapter(1)
        await registry.publish("default", "mood", manifest, files, activate=False, actor="default/abc")
        await registry.activate("default", "mood", 1, actor="default/def")
        key_id, secret = await registry.keys.create_key("default", "publisher", actor="cli")
        await registry.keys.revoke_key(key_id, actor="cli")
        await registry.keys.revoke_key(key_id, actor="cli")
        await registry.keys.ensure_admin_key("an admin key from outside")
        await registry.keys.ensure_admin_key("an admin key from outside")
        published, activated, made, revoked, outside = await entries(registry)
        assert (published.tenant, published.task, published.version) == ("default", "mood", 1)
        assert (published.digest, published.actor) == (manifest.digest, "default/abc")
        assert (published.detail, activated.detail) == ({"activated": False}, {})
        assert (activated.actor, activated.digest) == ("default/def", manifest.digest)
        assert abs(published.at - time.time()) < 60
        assert made.detail == revoked.detail == {"key": key_id, "role": "publisher"}
        assert [entry.action for entry in (made, revoked, outside)] == ["key.create", "key.revoke", "key.create"]
        assert outside.actor == "start"
        assert secret not in repr(await entries(registry))

    runner.run(story())


def test_a_key_revoked_twice_at_once_is_revoked_once(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        key_id, _ = await registry.keys.create_key("default", "user", actor="a")
        await asyncio.gather(*(registry.keys.list_keys() for _ in range(8)))  # connections for all of them
        revoked = await asyncio.gather(*(registry.keys.revoke_key(key_id, actor=str(n)) for n in range(8)))
        assert [entry.action for entry in await entries(registry)] == ["key.create", "key.revoke"]
        [kept] = await registry.keys.list_keys()
        assert [record.revoked_at for record in revoked] == [kept.revoked_at] * 8

    runner.run(story())


def test_the_log_is_read_in_pages_of_one_tenant_or_of_all(
    registry: Registry, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pages(log: AuditLog, tenant: str | None) -> list[AuditEntry]:
        found: list[AuditEntry] = []
        after: str | None = None
        while True:
            page = await log.read(after=after, limit=2, tenant=tenant)
            assert len(page.data) <= 2
            found += page.data
            if page.next_after is None:
                return found
            after = page.next_after

    async def story() -> None:
        monkeypatch.setattr("softmux.registry.audit._CHUNK", 3)
        await registry.tenants.create("acme", actor="a")
        for number in range(1, 5):
            await registry.tenants.set("acme", weight=1.0 + number, actor="a")
            await registry.tenants.set("default", weight=1.0 + number, actor="a")
        everything = await entries(registry)
        assert await pages(registry.audit, None) == list(everything)
        assert await pages(registry.audit, "acme") == [entry for entry in everything if entry.tenant == "acme"]
        assert await pages(registry.audit, "nobody") == []
        last = everything[-1].id
        assert (await registry.audit.read(after=last)).data == ()
        for nonsense in ("x", "1", "1-", "-1", f"{last}\n", "99999999999999999999-0", f"{2**64 - 1}-{2**64 - 1}"):
            with pytest.raises(InvalidRequest, match="no entry's id"):
                await registry.audit.read(after=nonsense)

    runner.run(story())


def test_the_newest_come_first_where_that_is_asked_for(registry: Registry, runner: asyncio.Runner) -> None:
    async def scene() -> None:
        for number in range(5):
            await registry.tenants.create(f"t{number}", actor="a")
        forward = await entries(registry)
        back: list[AuditEntry] = []
        after = None
        while True:
            page = await registry.audit.read(after=after, limit=2, newest=True)
            back += page.data
            after = page.next_after
            if after is None:
                break
        assert back == list(reversed(forward))
        one = await registry.audit.read(limit=10, tenant="t3", newest=True)
        assert [entry.tenant for entry in one.data] == ["t3"]

    runner.run(scene())
