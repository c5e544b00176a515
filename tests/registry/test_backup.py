from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import tarfile
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import BASE, LARGE, OTHER_BASE, adapter
from softmux.errors import BlobDamaged, InvalidRequest, SoftmuxError
from softmux.registry import backup as backups
from softmux.registry.backup import NotEmpty
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.keyspace import ID
from softmux.registry.reader import BlobReader
from softmux.registry.registry import Registry
from softmux.registry.usage import UsageKey, Used
from softmux.registry.verify import verify
from support.redis_server import RedisServer
from support.waiting import eventually

DAY = date(2026, 11, 24)
USED = UsageKey(DAY.isoformat(), "acme", "large")


@contextlib.asynccontextmanager
async def _patient(url: str) -> AsyncIterator[Connection]:
    connection = Connection(url, read_timeout=backups.PATIENCE)
    try:
        yield connection
    finally:
        await connection.close()


async def _fill(registry: Registry) -> tuple[str, str]:
    """A registry with some of everything; a user's key, and one that was revoked."""
    await registry.tenants.create("acme", weight=2.0, actor="t")
    for number in (1, 2, 3):
        await registry.publish("default", "mood", *adapter(number), actor="t", warnings=("odd",))
    await registry.activate("default", "mood", 2, actor="t")
    await registry.publish("default", "mood", *adapter(9, base=OTHER_BASE), actor="t")
    for tenant in ("default", "acme"):
        await registry.publish(tenant, "large", *adapter("large", size=LARGE), actor="t")
    await registry.publish("acme", "gone", *adapter("gone", size=LARGE), actor="t")
    await registry.delete("acme", "gone", actor="t")
    await registry.usage.flush("p", 1, [(USED, Used(requests=7))])
    _, secret = await registry.keys.create_key("acme", "publisher", actor="t")
    revoked, ended = await registry.keys.create_key("acme", "user", actor="t")
    await registry.keys.revoke_key(revoked, actor="t")
    return secret, ended


async def _told(registry: Registry) -> list[object]:
    """All that can be read of a registry, by its own means."""
    found: list[object] = []
    for tenant in await registry.tenants.list():
        found.append(tenant)
        for task in await registry._versions.names(tenant.name, after=None, prefix="", limit=1000):
            found.append(await registry.versions(tenant.name, task))
    found.append(await registry.usage.read(["acme"], DAY, DAY))
    found.append(await registry.keys.list_keys())
    return found


@pytest.mark.parametrize("way", ["embedded to external", "external to embedded", "to an object store"])
def test_a_restored_registry_has_everything(tmp_path: Path, way: str) -> None:
    async def story() -> None:
        with RedisServer(tmp_path / "redis") as server:
            first, second = (None, server.url) if way.startswith("embedded") else (server.url, None)
            source = await Registry.open(first, tmp_path / "one")
            secret, ended = await _fill(source)
            before = await _told(source)
            with redis.Redis.from_url(source.url) as client:
                client.zadd("softmux:t:acme:scores", {"a": 0.1, "b": 1790000000.123456})
                client.sadd("softmux:flags", "x", "y")
                client.rpush("softmux:t:default:line", "1", "2")
                client.set("softmux:t:default:passing", "x", ex=100)
                audit = client.xrange("softmux:audit")
            path = tmp_path / "registry.tar"
            async with _patient(source.url) as connection:
                about = await backups.backup(connection, BlobStore(source.blob_url), path)
            assert (about.tenants, about.tasks, about.versions) == (2, 3, 6)
            await source.close()

            blob_url = "memory:///" if way == "to an object store" else None
            target = await Registry.open(second, tmp_path / "two", blob_url)
            await target.follow()
            blobs = target._versions._blobs  # a store in memory is there by this object alone
            async with _patient(target.url) as connection:
                await backups.restore(connection, blobs, path)
                await eventually(lambda: target.keys.authenticate(secret) is not None, 10, "followers read it")
                assert target.keys.authenticate(ended) is None
                assert await _told(target) == before
                assert target.catalog.resolve("default", "mood", None, BASE).version == 2
                for name, data in adapter("large", size=LARGE)[1].items():
                    assert await target.file("acme", "large", 1, name) == data
                found = await verify(connection, blobs)
                assert (found.wrong, found.unused, found.versions) == ((), (), 6)
            with redis.Redis.from_url(target.url) as client:
                assert client.xrange("softmux:audit") == audit
                scores = dict(client.zrange("softmux:t:acme:scores", 0, -1, withscores=True))
                assert scores == {b"a": 0.1, b"b": 1790000000.123456}
                assert client.smembers("softmux:flags") == {b"x", b"y"}
                assert client.lrange("softmux:t:default:line", 0, -1) == [b"1", b"2"]
                assert not client.exists("softmux:t:default:passing"), "what expires is not kept"
                assert not client.keys("softmux-restoring:*")
            again = await target.publish("acme", "gone", *adapter("new"), actor="t")
            assert again.version.version == 2, "no number names two things, deleted ones included"
            await target.close()

    asyncio.run(story())


def test_a_registry_in_use_is_replaced_only_when_asked(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def story() -> None:
        await _fill(registry)
        path = tmp_path / "registry.tar"
        blobs = BlobStore(registry.blob_url)
        async with _patient(registry.url) as connection:
            await backups.backup(connection, blobs, path)
            before = await _told(registry)
            await registry.publish("default", "later", *adapter("later"), actor="t")
            with redis.Redis.from_url(registry.url) as client:
                known = client.get(ID)
                with pytest.raises(NotEmpty, match="--replace"):
                    await backups.restore(connection, blobs, path)
                assert client.get(ID) == known
                await backups.restore(connection, blobs, path, replace=True)
                assert client.get(ID) != known
            assert await _told(registry) == before

            def resolves() -> bool:
                try:
                    registry.catalog.resolve("default", "later", None, BASE)
                except SoftmuxError:
                    return False
                return True

            await eventually(lambda: not resolves(), 10, "servers read it anew")
            await registry.publish("default", "later", *adapter("later"), actor="t")
            assert resolves()

    runner.run(story())


def test_a_backup_taken_while_publishing_goes_on_is_whole(tmp_path: Path) -> None:
    async def story() -> None:
        source = await Registry.open(None, tmp_path / "one")
        acknowledged: dict[tuple[str, int], str] = {}

        async def publish(client: int, done: asyncio.Event) -> None:
            number = 0
            while not done.is_set():
                task = f"task-{client}-{number % 7}"
                size = LARGE if number % 3 == 0 else 500
                made = await source.publish("default", task, *adapter(f"{client}-{number}", size=size), actor="t")
                acknowledged[task, made.version.version] = made.version.manifest.digest
                if number % 5 == 4:
                    await source.delete("default", task, actor="t")
                    for key in [key for key in acknowledged if key[0] == task]:
                        del acknowledged[key]
                number += 1

        done = asyncio.Event()
        publishing = [asyncio.create_task(publish(client, done)) for client in range(3)]
        await eventually(lambda: len(acknowledged) > 20, 60, "uploads go on")
        paths, early = [tmp_path / f"{number}.tar" for number in range(3)], dict(acknowledged)
        async with _patient(source.url) as connection:
            for path in paths:
                await backups.backup(connection, BlobStore(source.blob_url), path)
                assert not (await verify(connection, BlobStore(source.blob_url))).wrong
        done.set()
        await asyncio.gather(*publishing)
        await source.close()
        for number, path in enumerate(paths):
            target = await Registry.open(None, tmp_path / f"restored-{number}")
            async with _patient(target.url) as connection:
                await backups.restore(connection, BlobStore(target.blob_url), path)
                assert not (await verify(connection, BlobStore(target.blob_url))).wrong
            reader = BlobReader(target.url, target.blob_url)
            found = 0
            for task in await target._versions.names("default", after=None, prefix="", limit=1000):
                for record in await target.versions("default", task):
                    assert reader.read("default", record.manifest.digest)[0] == record.manifest
                    found += 1
                    if (task, record.version) in early:
                        assert early[task, record.version] == record.manifest.digest
            assert found
            reader.close()
            await target.close()

    asyncio.run(story())


def test_what_is_no_whole_backup_is_refused_before_anything_is_written(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    path, blobs = tmp_path / "registry.tar", BlobStore((tmp_path / "empty").as_uri())

    async def story() -> None:
        await registry.publish("default", "mood", *adapter(1, size=LARGE), actor="t")
        with RedisServer(tmp_path / "redis") as server:
            async with _patient(registry.url) as connection, _patient(server.url) as empty:
                await backups.backup(connection, BlobStore(registry.blob_url), path)
                data = path.read_bytes()
                for position in (len(data) // 2, data.index(b"default:versions")):
                    path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
                    with pytest.raises(InvalidRequest, match="damaged"):
                        await backups.restore(empty, blobs, path)
                for length in (0, 100, len(data) // 2, len(data) - 12000):
                    path.write_bytes(data[:length])
                    with pytest.raises(InvalidRequest, match="no whole backup"):
                        await backups.restore(empty, blobs, path)
                with server.client() as client:
                    assert not client.keys()
                assert not list(blobs.names())
                with pytest.raises(InvalidRequest, match="no registry to back up"):
                    await backups.backup(empty, blobs, path)

    runner.run(story())


def test_a_registry_with_a_lost_file_is_not_backed_up(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def story() -> None:
        await registry.publish("default", "mood", *adapter(1, size=LARGE), actor="t")
        [blob] = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
        blob.unlink()
        async with _patient(registry.url) as connection:
            with pytest.raises(BlobDamaged, match="missing"):
                await backups.backup(connection, BlobStore(registry.blob_url), tmp_path / "registry.tar")

    runner.run(story())
    assert not list(tmp_path.glob("*.tar*")), "neither it nor a part of it"


def test_a_restore_that_was_cut_short_leaves_nothing_to_see(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        await _fill(registry)
        path = tmp_path / "registry.tar"
        with RedisServer(tmp_path / "redis") as server:
            async with _patient(registry.url) as connection, _patient(server.url) as empty:
                await backups.backup(connection, BlobStore(registry.blob_url), path)
                blobs = BlobStore((tmp_path / "store").as_uri())
                with monkeypatch.context() as patch:
                    patch.setattr(blobs, "put", _full)
                    with pytest.raises(OSError, match="no space"):
                        await backups.restore(empty, blobs, path)
                with server.client() as client:
                    assert not client.keys("softmux:*")
                await backups.restore(empty, blobs, path)
                with server.client() as client:
                    assert not client.keys("softmux-restoring:*")
                assert not (await verify(empty, blobs)).wrong

    runner.run(story())


def _full(*_: object) -> None:
    raise OSError("no space left")


def test_the_file_is_for_its_owner_and_plain_tar(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    """It has the hashes of all keys: nobody else may read it."""
    path = tmp_path / "registry.tar"

    async def story() -> None:
        await _fill(registry)
        async with _patient(registry.url) as connection:
            await backups.backup(connection, BlobStore(registry.blob_url), path)

    before = os.umask(0o022)
    try:
        runner.run(story())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        assert tar.getnames()[0] == "values.msgpack"
        assert tar.getnames()[-1] == "backup.json"


def test_backups_to_one_file_at_a_time_do_not_mix(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> None:
        await _fill(registry)
        path = tmp_path / "b.tar"
        (tmp_path / "b.tar.part").touch(mode=0o644)  # somebody else's
        async with _patient(registry.url) as connection:
            store = BlobStore(registry.blob_url)
            told = await asyncio.gather(*(backups.backup(connection, store, path) for _ in range(4)))
        assert path.stat().st_mode & 0o777 == 0o600
        about, _ = backups._checked(path)
        assert about in told

    runner.run(story())
    assert sorted(file.name for file in tmp_path.glob("b.tar*")) == ["b.tar", "b.tar.part"]


def test_a_backup_that_can_not_be_written_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    async def story() -> None:
        with RedisServer(tmp_path / "redis") as server:
            registry = await Registry.open(server.url, tmp_path / "data")
            await registry.publish("default", "large", *adapter("large", size=LARGE), actor="t")
            blobs, place = BlobStore(registry.blob_url), tmp_path / "place"
            place.mkdir()
            async with _patient(server.url) as connection:
                for path in (place / ("n" * 250), tmp_path / "none" / "kept.tar"):
                    with pytest.raises(InvalidRequest, match=r"can't be written .*: free space there, or"):
                        await backups.backup(connection, blobs, path)
                soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (LARGE // 2, hard))  # as on a full disk
                try:
                    with pytest.raises(InvalidRequest, match=r"can't be written \(File too large\)"):
                        await backups.backup(connection, blobs, place / "kept.tar")
                finally:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
                assert not list(place.iterdir())
                assert (await backups.backup(connection, blobs, place / "kept.tar")).files == 2
            await registry.close()

    asyncio.run(story())
