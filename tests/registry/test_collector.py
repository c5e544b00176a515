from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import LARGE, adapter
from softmux.registry import publication
from softmux.registry.blobs import BlobStore
from softmux.registry.collector import Collector
from softmux.registry.connection import Connection
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


def test_a_clock_put_back_by_an_hour_locks_nobody_out(
    registry: Registry, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that began, by the clock, an hour from now: its time begins anew, and is a minute (here less)."""
    manifest, files = adapter(1, size=LARGE)
    monkeypatch.setattr(publication, "BLOB_DELETION_SECONDS", 0.3)
    with redis.Redis.from_url(registry.url) as client:
        for entry in manifest.files:
            client.hset("softmux:t:default:deleting", entry.sha256, time.time() + 3600)
        runner.run(registry.collect())
    made = runner.run(asyncio.wait_for(registry.publish("default", "mood", manifest, files, actor="t"), 30))
    assert made.created


def test_a_clock_that_leaps_an_hour_costs_a_running_upload_a_second_try(
    registry: Registry, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are leased, are put, and count as an hour old: a collector takes them. It puts them again."""
    manifest, files = adapter(1, size=LARGE)
    blobs = registry._publisher._blobs
    put, tries = blobs.put, 0

    def leaping(tenant: str, sha256: str, data: bytes) -> None:
        nonlocal tries
        tries += 1
        put(tenant, sha256, data)
        if tries == 1:
            with redis.Redis.from_url(registry.url) as client:
                client.zincrby("softmux:t:default:loose", -3700, sha256)
            asyncio.run(_collected(registry.url, registry.blob_url))

    monkeypatch.setattr(blobs, "put", leaping)
    made = runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    assert tries == 2
    for name, data in files.items():
        assert runner.run(registry.file("default", "mood", made.version.version, name)) == data


async def _collected(url: str, blob_url: str) -> None:
    connection = Connection(url)
    assert await Collector(connection, BlobStore(blob_url)).collect() == 1
    await connection.close()


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_servers_own_clock_decides_nothing(
    registry: Registry, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    manifest, files = adapter(1, size=LARGE)
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + 3700 * hours)
    runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    runner.run(registry.delete("default", "mood", actor="t"))
    monkeypatch.undo()
    assert runner.run(registry.collect()) == 0
    with redis.Redis.from_url(registry.url) as client:
        [(_, since)] = client.zrange("softmux:t:default:garbage", 0, -1, withscores=True)
        assert abs(since - wall()) < 60
