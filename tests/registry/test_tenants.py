from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from registry.registry_fixtures import BASE, LARGE, adapter
from softmux.errors import Conflict, InvalidRequest, NotFound, TaskNotFound
from softmux.registry.records import Share
from softmux.registry.registry import Registry
from softmux.registry.tenants import Limits, TenantRecord
from support.waiting import eventually


@pytest.fixture
def other(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> Iterator[Registry]:
    """The registry as another process has it."""
    other = runner.run(Registry.open(None, tmp_path))
    yield other
    runner.run(other.close())


def test_a_tenant_is_made_once_and_changed_field_by_field(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        tenants = registry.tenants
        assert [tenant.name for tenant in await tenants.list()] == ["default"]
        made, new = await tenants.create("acme", weight=2.0, limits=Limits(adapters=3), actor="t")
        assert (new, made.weight, made.limits) == (True, 2.0, Limits(adapters=3))
        assert tenants.get("acme") == made == await tenants.find("acme")
        assert await tenants.create("acme", weight=9.0, actor="t") == (made, False)
        changed = await tenants.set("acme", limits={"requests_per_minute": 60}, actor="t")
        assert changed == msgspec.structs.replace(made, limits=Limits(adapters=3, requests_per_minute=60))
        changed = await tenants.set("acme", weight=0.5, limits={"adapters": None}, actor="t")
        assert (changed.weight, changed.limits) == (0.5, Limits(requests_per_minute=60))
        assert tenants.get("acme") == changed
        assert [tenant.name for tenant in await tenants.list()] == ["acme", "default"]

    runner.run(story())


def test_what_is_no_tenant_weight_or_limit_is_refused(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        tenants = registry.tenants
        for name in ("Ac:me", "a/b", "", "a" * 65):
            with pytest.raises(InvalidRequest, match="not allowed"):
                await tenants.create(name, actor="t")
        for weight in (0.0, -1.0, 1e-300, 0.0009, float("nan"), float("inf"), 1001.0):
            with pytest.raises(InvalidRequest, match="weight"):
                await tenants.create("acme", weight=weight, actor="t")
        with pytest.raises(InvalidRequest, match="adapters is a whole number"):
            await tenants.create("acme", limits=Limits(adapters=-1), actor="t")
        with pytest.raises(InvalidRequest, match="no limit 'cats'"):
            await tenants.set("default", limits={"cats": 1}, actor="t")
        for ask in (tenants.find("nobody"), tenants.set("nobody", weight=2.0, actor="t")):
            with pytest.raises(NotFound, match="tenant create nobody"):
                await ask
        assert [tenant.name for tenant in await tenants.list()] == ["default"]

    runner.run(story())


def test_other_processes_hear_of_it(registry: Registry, other: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        assert registry.tenants.get("acme") == TenantRecord(name="acme", created_at=0.0), "not heard of: no limits"
        await other.tenants.create("acme", weight=3.0, actor="t")
        await eventually(lambda: registry.tenants.get("acme").weight == 3.0, 30, "the tenant is heard of")
        await other.tenants.set("acme", limits={"tokens_per_minute": 0}, actor="t")
        await eventually(lambda: registry.tenants.get("acme").limits.tokens_per_minute == 0, 30, "its limit counts")

    runner.run(story())


def test_changes_at_once_are_all_kept(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        fields = Limits.__struct_fields__
        await asyncio.gather(*(registry.tenants.set("default", limits={name: 7}, actor="t") for name in fields))
        assert registry.tenants.get("default").limits == Limits(**dict.fromkeys(fields, 7))

    runner.run(story())


def test_a_tenant_kept_as_the_time_it_was_made_is_read_and_changed(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        with redis.Redis.from_url(registry.url) as client:
            client.hset("softmux:tenants", "old", "1790000000.25")
        assert await registry.tenants.find("old") == TenantRecord(name="old", created_at=1790000000.25)
        changed = await registry.tenants.set("old", weight=2.0, actor="t")
        assert changed == TenantRecord(name="old", created_at=1790000000.25, weight=2.0)
        assert await registry.tenants.find("old") == changed

    runner.run(story())


def test_only_an_empty_tenant_is_deleted_and_its_name_is_not_given_again(
    registry: Registry, other: Registry, runner: asyncio.Runner
) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", weight=2.0, actor="t")
        await registry.publish("acme", "mood", *adapter(1), actor="t")
        key_id, _ = await registry.keys.create_key("acme", "user", actor="t")
        with pytest.raises(Conflict, match="1 tasks and 1 keys"):
            await registry.delete_tenant("acme", actor="t")
        await registry.keys.revoke_key(key_id, actor="t")
        with pytest.raises(Conflict, match="1 tasks and 0 keys"):
            await registry.delete_tenant("acme", actor="t")
        await registry.delete("acme", "mood", actor="t")
        await other.delete_tenant("acme", actor="t")
        assert [tenant.name for tenant in await registry.tenants.list()] == ["default"]
        await eventually(lambda: registry.tenants.get("acme").weight == 1.0, 30, "it is seen")
        for refused in (
            registry.delete_tenant("acme", actor="t"),
            registry.publish("acme", "mood", *adapter(1), actor="t"),
            registry.keys.create_key("acme", "user", actor="t"),
            registry.tenants.set("acme", weight=3.0, actor="t"),
        ):
            with pytest.raises(NotFound, match="no tenant 'acme'"):
                await refused
        with pytest.raises(Conflict, match="not given again"):
            await registry.tenants.create("acme", actor="t")
        for force in (False, True):
            with pytest.raises(InvalidRequest, match="stays"):
                await registry.delete_tenant("default", force=force, actor="t")

    runner.run(story())


def test_a_forced_deletion_revokes_and_deletes_first_and_tells_of_each(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", actor="t")
        await registry.tenants.create("beta", actor="t")
        await registry.publish("acme", "large", *adapter(1, size=LARGE), actor="t")
        await registry.publish("acme", "small", *adapter(2), actor="t")
        await registry.share("acme", "small", Share(everyone=True), actor="t")
        assert registry.catalog.resolve("beta", "acme/small", None, BASE).tenant == "acme"
        _, secret = await registry.keys.create_key("acme", "publisher", actor="t")
        before = len((await registry.audit.read(limit=1000)).data)
        await registry.delete_tenant("acme", force=True, actor="t")
        assert registry.keys.authenticate(secret) is None
        with pytest.raises(TaskNotFound):
            registry.catalog.resolve("beta", "acme/small", None, BASE)
        told = (await registry.audit.read(limit=1000)).data[before:]
        assert [(entry.action, entry.task) for entry in told] == [
            ("key.revoke", None),
            ("task.delete", "large"),
            ("task.delete", "small"),
            ("tenant.delete", None),
        ]
        assert await registry.collect(grace=0.0) == 1, "its blobs are collected, too"
        with redis.Redis.from_url(registry.url) as client:
            assert {key.decode() for key in client.scan_iter("softmux:t:acme:*")} == set()

    runner.run(story())
