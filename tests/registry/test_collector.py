from __future__ import annotations

import asyncio
from pathlib import Path

import redis

from registry.registry_fixtures import LARGE, adapter
from softmux.registry.registry import Registry


def _blobs(data: Path) -> int:
    return sum(path.is_file() for path in (data / "blobs").rglob("*"))


def _left(registry: Registry) -> dict[str, int]:
    with redis.Redis.from_url(registry.url) as client:
        hashes = {kind: client.hlen(f"softmux:t:default:{kind}") for kind in ("manifests", "refs", "files", "filerefs")}
        zsets = {kind: client.zcard(f"softmux:t:default:{kind}") for kind in ("garbage", "loose")}
        return {**hashes, **zsets, "deleting": client.hlen("softmux:t:default:deleting")}


def test_nothing_is_left_of_what_was_deleted(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> None:
        for number in range(3):
            await registry.publish("default", "mood", *adapter(number, size=LARGE), actor="t")
        await registry.delete("default", "mood", actor="t")
        assert await registry.collect() == 0, "the grace period has not passed"
        assert _blobs(tmp_path) == 3
        assert await registry.collect(grace=0) == 3

    runner.run(story())
    assert _blobs(tmp_path) == 0
    assert set(_left(registry).values()) == {0}, _left(registry)


def test_shared_files_stay_while_one_has_them(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> None:
        manifest, files = adapter(1, size=LARGE)
        await registry.publish("default", "one", manifest, files, actor="t")
        await registry.publish("default", "two", manifest, files, actor="t")
        await registry.delete("default", "one", actor="t")
        assert await registry.collect(grace=0) == 0
        for name, data in files.items():
            assert await registry.file("default", "two", 1, name) == data
        await registry.delete("default", "two", actor="t")
        assert await registry.collect(grace=0) == 1

    runner.run(story())
    assert set(_left(registry).values()) == {0}, _left(registry)


def test_uploads_race_a_collector_without_grace(registry: Registry, runner: asyncio.Runner) -> None:
    """The hardest case: the same large content deleted, collected and uploaded over and over."""
    manifest, files = adapter(1, size=LARGE)

    async def collect(done: asyncio.Event) -> None:
        while not done.is_set():
            await registry.collect(grace=0.01)

    async def upload(task: str) -> None:
        for _ in range(10):
            made = await registry.publish("default", task, manifest, files, actor="t")
            for name, data in files.items():
                assert await registry.file("default", task, made.version.version, name) == data
            await registry.delete("default", task, actor="t")

    async def story() -> None:
        done = asyncio.Event()
        collecting = asyncio.create_task(collect(done))
        await asyncio.gather(*(upload(f"task-{number}") for number in range(3)))
        done.set()
        await collecting
        await asyncio.sleep(0.05)
        for _ in range(3):
            await registry.collect(grace=0)

    runner.run(story())
    assert set(_left(registry).values()) == {0}, _left(registry)
