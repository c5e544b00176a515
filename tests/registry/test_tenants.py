from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import redis

from registry.registry_fixtures import eventually
from softmux.errors import InvalidRequest, NotFound
from softmux.registry.registry import Registry
from softmux.registry.tenants import Limits, TenantRecord


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
        for weight in (0.0, -1.0, float("nan"), float("inf"), 1001.0):
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
        await eventually(lambda: registry.tenants.get("acme").weight == 3.0, 5, "the tenant is heard of")
        await other.tenants.set("acme", limits={"tokens_per_minute": 0}, actor="t")
        await eventually(lambda: registry.tenants.get("acme").limits.tokens_per_minute == 0, 5, "its limit counts")

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
