"""What a tenant may store: checked where it is published, so that two uploads at a time can't both pass."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import LARGE, OTHER_BASE, adapter
from softmux.errors import QuotaExceeded, SoftmuxError
from softmux.registry.registry import Registry


async def limited(registry: Registry, **limits: int | None) -> None:
    await registry.tenants.create("acme", actor="t")
    await registry.tenants.set("acme", limits=limits, actor="t")


def test_stored_bytes_are_those_of_the_versions_there_are(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        first, second, third = (adapter(seed, size=1000) for seed in range(3))
        await limited(registry, stored_bytes=first[0].bytes + second[0].bytes)
        await registry.publish("acme", "a", *first, actor="t")
        await registry.publish("acme", "a", *second, actor="t")
        with pytest.raises(QuotaExceeded, match=r"limit stored_bytes of 2,\d+: DELETE") as refused:
            await registry.publish("acme", "b", *third, actor="t")
        assert refused.value.param == "stored_bytes"
        assert [version.version for version in await registry.versions("acme", "a")] == [2, 1]
        # what is there already costs nothing, in this task or another one
        assert not (await registry.publish("acme", "a", *first, actor="t")).created
        assert (await registry.publish("acme", "b", *first, actor="t")).created
        await registry.delete("acme", "a", actor="t")
        await registry.publish("acme", "b", *third, actor="t")  # the first is still b's, the second is gone
        with pytest.raises(QuotaExceeded):
            await registry.publish("acme", "b", *second, actor="t")
        await registry.tenants.set("acme", limits={"stored_bytes": None}, actor="t")
        await registry.publish("acme", "b", *second, actor="t")

    runner.run(story())


def test_adapters_are_tasks(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, adapters=2)
        for task in ("a", "b"):
            await registry.publish("acme", task, *adapter(1), actor="t")
        with pytest.raises(QuotaExceeded, match="limit adapters of 2 is reached: DELETE") as refused:
            await registry.publish("acme", "c", *adapter(1), actor="t")
        assert refused.value.param == "adapters"
        await registry.publish("acme", "b", *adapter(2), actor="t")
        await registry.delete("acme", "a", actor="t")
        await registry.publish("acme", "c", *adapter(1), actor="t")
        await registry.publish("default", "c", *adapter(1), actor="t")

    runner.run(story())


def test_of_uploads_that_race_as_many_pass_as_there_is_room_for(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> list[bool]:
        size = adapter(0, size=LARGE)[0].bytes
        await limited(registry, stored_bytes=3 * size, adapters=3)

        async def upload(seed: int) -> bool:
            try:
                await registry.publish("acme", f"task-{seed}", *adapter(seed, size=LARGE), actor="t")
            except QuotaExceeded:
                return False
            return True

        return await asyncio.gather(*(upload(seed) for seed in range(12)))

    assert sum(runner.run(story())) == 3


def test_a_refused_upload_stores_nothing(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> None:
        await limited(registry, stored_bytes=LARGE)
        with pytest.raises(QuotaExceeded):
            await registry.publish("acme", "a", *adapter(1, size=LARGE), actor="t")

    runner.run(story())
    assert not [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]


def test_versions_of_a_registry_from_before_quotas_count(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        first, second = adapter(1, size=1000), adapter(2, size=1000)
        await limited(registry, stored_bytes=None)
        await registry.publish("acme", "a", *first, actor="t")
        with redis.Redis.from_url(registry.url) as client:
            assert client.delete("softmux:t:acme:sizes")
        await registry.tenants.set("acme", limits={"stored_bytes": first[0].bytes + second[0].bytes - 1}, actor="t")
        with pytest.raises(QuotaExceeded, match=f"beside the {first[0].bytes:,} "):
            await registry.publish("acme", "a", *second, actor="t")
        await registry.tenants.set("acme", limits={"stored_bytes": first[0].bytes + second[0].bytes}, actor="t")
        await registry.publish("acme", "a", *second, actor="t")

    runner.run(story())


def test_what_is_counted_is_what_is_there(registry: Registry, runner: asyncio.Runner) -> None:
    """After any publications and deletions, the sizes kept are those of the versions that exist."""

    async def story() -> None:
        await limited(registry, stored_bytes=10_000, adapters=4)
        for number in range(60):
            task, seed = f"t{number * 7 % 5}", number * 11 % 8
            try:
                if number % 4 == 3:
                    await registry.delete("acme", task, actor="t")
                else:
                    base = {"base": OTHER_BASE} if number % 3 == 0 else {}
                    await registry.publish("acme", task, *adapter(seed, size=900, **base), actor="t")
            except SoftmuxError:
                pass
            versions = {
                version.manifest.digest: version.manifest.bytes
                for name in [f"t{one}" for one in range(5)]
                for version in await versions_of(name)
            }
            with redis.Redis.from_url(registry.url) as client:
                sizes = {digest.decode(): int(size) for digest, size in client.hgetall("softmux:t:acme:sizes").items()}
            assert sizes == versions
            assert sum(sizes.values()) <= 10_000

    async def versions_of(task: str) -> list:
        try:
            return await registry.versions("acme", task)
        except SoftmuxError:
            return []

    runner.run(story())
