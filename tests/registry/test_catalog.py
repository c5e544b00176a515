from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import BASE, OTHER_BASE, adapter, server_pid
from softmux.errors import BaseMismatch, SoftmuxError, TaskNotFound, VersionNotFound
from softmux.registry.keyspace import CHANGES, SEQ
from softmux.registry.records import Share
from softmux.registry.registry import Registry
from support.waiting import eventually


@pytest.fixture
def other(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> Iterator[Registry]:
    """The registry as another process has it: it joins the server, and follows nothing."""
    other = runner.run(Registry.open(None, tmp_path))
    yield other
    runner.run(other.close())


def _resolved(registry: Registry, task: str, version: int | None = None) -> int | None:
    try:
        return registry.catalog.resolve("default", task, version, BASE).version
    except SoftmuxError:
        return None


def test_a_change_of_its_own_shows_on_return(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        for number in (1, 2, 3):
            published = await registry.publish("default", "mood", *adapter(number), actor="t")
            assert registry.catalog.resolve("default", "mood", None, BASE) == published.version
        await registry.activate("default", "mood", 1, actor="t")
        assert _resolved(registry, "mood") == 1
        assert registry.catalog.resolve("default", "mood", 3, BASE).active is False
        await registry.delete("default", "mood", actor="t")
        with pytest.raises(TaskNotFound):
            registry.catalog.resolve("default", "mood", None, BASE)

    runner.run(story())


def test_what_resolve_refuses(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.publish("default", "mood", *adapter(1), actor="t")
        resolve = registry.catalog.resolve
        for error, question in (
            (TaskNotFound, ("default", "nothing", None, BASE)),
            (TaskNotFound, ("acme", "mood", None, BASE)),
            (VersionNotFound, ("default", "mood", 2, BASE)),
            (VersionNotFound, ("default", "mood", None, OTHER_BASE)),
            (BaseMismatch, ("default", "mood", 1, OTHER_BASE)),
        ):
            with pytest.raises(error):
                resolve(*question)

    runner.run(story())


def test_changes_by_another_process_show_by_themselves(
    registry: Registry, other: Registry, runner: asyncio.Runner
) -> None:
    async def story() -> None:
        await other.publish("default", "mood", *adapter(1), actor="t")
        await eventually(lambda: _resolved(registry, "mood") == 1, 30, "the upload is seen")
        await other.publish("default", "mood", *adapter(2), actor="t")
        await eventually(lambda: _resolved(registry, "mood") == 2, 30, "the new version is seen")
        await other.activate("default", "mood", 1, actor="t")
        await eventually(lambda: _resolved(registry, "mood") == 1, 30, "the roll-back is seen")
        await other.delete("default", "mood", actor="t")
        await eventually(lambda: _resolved(registry, "mood") is None, 30, "the deletion is seen")
        await other.tenants.create("acme", actor="t")
        await other.publish("acme", "mood", *adapter(1), actor="t")
        await eventually(lambda: len(registry.catalog) == 1, 30, "a new tenant's task is seen")

    runner.run(story())


def test_shares_by_another_process_show_by_themselves(
    registry: Registry, other: Registry, runner: asyncio.Runner
) -> None:
    def seen(tenant: str) -> bool:
        try:
            return registry.catalog.resolve(tenant, "default/mood", None, BASE).version == 1
        except TaskNotFound:
            return False

    async def story() -> None:
        await other.publish("default", "mood", *adapter(1), actor="t")
        await other.share("default", "mood", Share(tenants=("acme",)), actor="t")
        await eventually(lambda: seen("acme"), 30, "the share is seen")
        assert not seen("beta")
        assert [record.task for record in registry.catalog.shared_tasks("acme", BASE).data] == ["mood"]
        assert registry.catalog.shared_tasks("acme", OTHER_BASE).data == ()
        await other.share("default", "mood", Share(everyone=True), actor="t")
        await eventually(lambda: seen("beta"), 30, "it is everyone's")
        await other.share("default", "mood", None, actor="t")
        await eventually(lambda: not seen("acme"), 30, "its end is seen")
        assert seen("default"), "it stays its owner's, by either name"
        assert registry.catalog.shared_tasks("acme", BASE).data == ()
        with redis.Redis.from_url(registry.url) as client:
            assert client.hgetall("softmux:t:default:shares") == {}

    runner.run(story())


def test_a_share_of_nothing_shows_nowhere(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        with redis.Redis.from_url(registry.url) as client:
            client.hset("softmux:t:default:shares", "ghost", '{"everyone": true}')
        await registry.catalog.refresh("default", "ghost")
        assert registry.catalog.shared_tasks("acme", BASE).data == ()
        with pytest.raises(TaskNotFound):
            registry.catalog.shared("acme", "default/ghost")

    runner.run(story())


def test_messages_lost_cost_a_moment(registry: Registry, other: Registry, runner: asyncio.Runner) -> None:
    """The stream without the entries that tell of the changes: the counter tells that there were some."""

    async def story() -> None:
        for name in ("one", "two"):
            with redis.Redis.from_url(registry.url) as client, client.pipeline() as pipe:
                pipe.hset(f"softmux:t:default:versions:{name}", "1", await _stored(other, name))
                pipe.hset(f"softmux:t:default:active:{name}", BASE, "1")
                pipe.zadd("softmux:t:default:tasks", {name: 0})
                pipe.incr(SEQ)
                if name == "two":
                    pipe.delete(CHANGES)
                pipe.execute()
            await eventually(lambda name=name: _resolved(registry, name) == 1, 2, "found without a message")  # type: ignore[misc]
        await other.publish("default", "three", *adapter(3), actor="t")
        await eventually(lambda: _resolved(registry, "three") == 1, 2, "the stream is followed again")

    async def _stored(other: Registry, name: str) -> bytes:
        await other.publish("default", "template", *adapter(name), actor="t")
        with redis.Redis.from_url(other.url) as client:
            return next(iter(client.hgetall("softmux:t:default:versions:template").values()))

    runner.run(story())


def test_resolve_goes_on_while_redis_is_killed_and_follows_afterwards(
    registry: Registry, other: Registry, runner: asyncio.Runner
) -> None:
    async def story() -> None:
        await registry.publish("default", "mood", *adapter(1), actor="t")
        os.kill(server_pid(registry.url), signal.SIGKILL)
        assert _resolved(registry, "mood") == 1
        await other.publish("default", "mood", *adapter(2), actor="t")  # waits for the restart within its budget
        await eventually(lambda: _resolved(registry, "mood") == 2, 2, "changes are followed again")

    runner.run(story())


def test_thousands_of_tasks_load_in_seconds(registry: Registry, tmp_path: Path, runner: asyncio.Runner) -> None:
    count = 5000

    async def story() -> None:
        await registry.publish("default", "template", *adapter(1), actor="t")
        with redis.Redis.from_url(registry.url) as client:
            stored = client.hget("softmux:t:default:versions:template", "1")
            pipe = client.pipeline(transaction=True)
            for number in range(count):
                pipe.hset(f"softmux:t:default:versions:t{number}", "1", stored)
                pipe.hset(f"softmux:t:default:active:t{number}", BASE, "1")
                pipe.zadd("softmux:t:default:tasks", {f"t{number}": 0})
            pipe.execute()
        joiner = await Registry.open(None, tmp_path)
        try:
            start = time.monotonic()
            await joiner.follow()
            took = time.monotonic() - start
            assert len(joiner.catalog) == count + 1
            assert took < 60, f"{count} tasks took {took:.1f} s"
            start = time.perf_counter()
            for number in range(count):
                joiner.catalog.resolve("default", f"t{number}", None, BASE)
            each = (time.perf_counter() - start) / count
            assert each < 100e-6
            print(f"{count} tasks loaded in {took:.2f} s, resolved in {each * 1e6:.2f} us each")
        finally:
            await joiner.close()

    runner.run(story())
