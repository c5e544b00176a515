"""What a Redis that runs may answer instead of doing it: said in words, within a second, while memory goes on."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from registry.registry_fixtures import BASE, LARGE, adapter
from softmux.errors import RegistryDown, SoftmuxError
from softmux.registry.addresses import shown
from softmux.registry.budgets import Budgets
from softmux.registry.connection import Connection, SyncConnection
from softmux.registry.keyspace import ID
from softmux.registry.registry import Registry
from softmux.registry.usage import UsageKey, Used
from support.redis_server import RedisServer
from support.waiting import eventually

_AT_ONCE = {"repl-diskless-sync-delay": "0"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as server:
        yield server


async def _opened(server: RedisServer, tmp_path: Path) -> Registry:
    registry = await Registry.open(server.url, tmp_path / "data")
    await registry.follow()
    return registry


async def _refused(operation: Awaitable[Any], words: str) -> None:
    """Within a second on a machine with time; here, without waiting for what does not come."""
    start = time.monotonic()
    with pytest.raises(RegistryDown, match=words):
        await operation
    assert time.monotonic() - start < 10


def _resolved(registry: Registry, task: str = "mood") -> int | None:
    try:
        return registry.catalog.resolve("default", task, None, BASE).version
    except SoftmuxError:
        return None


def test_a_full_redis_takes_no_upload_and_lets_room_be_made(server: RedisServer, tmp_path: Path) -> None:
    async def story() -> None:
        registry = await _opened(server, tmp_path)
        for number in (1, 2):
            await registry.publish("default", "mood", *adapter(number), actor="t")
        key_id, secret = await registry.keys.create_key("default", "user", actor="t")
        with server.client() as client:
            client.config_set("maxmemory", 1)
            for size in (500, LARGE):
                await _refused(
                    registry.publish("default", "new", *adapter("new", size=size), actor="t"),
                    "no memory left.*maxmemory, or delete tasks",
                )
            assert client.hlen("softmux:t:default:manifests") == 2
            assert not client.exists("softmux:t:default:versions:new"), "not even half of it is there"
            await registry.activate("default", "mood", 1, actor="t")
            assert _resolved(registry) == 1, "a roll-back needs no memory"
            await registry.keys.revoke_key(key_id, actor="t")
            assert registry.keys.authenticate(secret) is None
            await registry.delete("default", "mood", actor="t")
            assert _resolved(registry) is None
            await registry.collect(grace=0)
            assert client.hlen("softmux:t:default:manifests") == 0
            client.config_set("maxmemory", 0)
        await registry.publish("default", "new", *adapter("new"), actor="t")
        await registry.close()

    asyncio.run(story())


def test_a_replica_takes_no_change_until_it_is_promoted(server: RedisServer, tmp_path: Path) -> None:
    async def story() -> None:
        registry = await _opened(server, tmp_path)
        await registry.publish("default", "mood", *adapter(1), actor="t")
        with server.client() as client, RedisServer(tmp_path / "primary", **_AT_ONCE) as primary:
            state = client.get(ID)
            client.config_set("replica-read-only", "yes")
            with primary.client() as other:  # the same registry, so that following it goes on
                _copy(client, other)
            client.replicaof("127.0.0.1", primary.port)
            await eventually(lambda: client.info("replication")["master_link_status"] == "up", 20, "it is a replica")
            assert client.get(ID) == state
            await _refused(registry.publish("default", "mood", *adapter(2), actor="t"), "read-only replica.*promote")
            assert _resolved(registry) == 1
            client.replicaof("NO", "ONE")
        await registry.publish("default", "mood", *adapter(2), actor="t")
        assert _resolved(registry) == 2
        await registry.close()

    asyncio.run(story())


def _copy(source: redis.Redis, target: redis.Redis) -> None:
    for key in source.scan_iter():
        target.restore(key, 0, source.dump(key), replace=True)


def test_a_busy_redis_is_waited_for_no_longer_than_a_second(server: RedisServer, tmp_path: Path) -> None:
    async def story() -> None:
        registry = await _opened(server, tmp_path)
        await registry.publish("default", "mood", *adapter(1), actor="t")
        with server.client() as client:
            client.config_set("busy-reply-threshold", 50)

        def keep_busy() -> None:
            with server.client() as client, pytest.raises(redis.RedisError):
                client.eval("while true do end", 0)

        thread = threading.Thread(target=keep_busy)
        thread.start()
        with server.client() as client:
            await asyncio.sleep(0.2)
            await _refused(registry.delete("default", "mood", actor="t"), "busy by someone's script.*SCRIPT KILL")
            assert _resolved(registry) == 1
            client.script_kill()
        thread.join()
        await registry.delete("default", "mood", actor="t")
        await registry.close()

    asyncio.run(story())


@pytest.mark.parametrize(
    ("credentials", "words"),
    [
        ("", "asks for a password.*into the URL"),
        (":wrong@", "refuses the user or the password"),
        ("reader:open@", "does not let this user"),
    ],
)
def test_a_password_that_is_wrong_or_missing_is_named(tmp_path: Path, credentials: str, words: str) -> None:
    with RedisServer(tmp_path / "redis", requirepass="secret") as server:
        client = redis.Redis(port=server.port, password="secret")
        client.acl_setuser("reader", enabled=True, passwords=["+open"], keys=["*"], commands=["+get"])
        client.close()
        url = server.url.replace("redis://", f"redis://{credentials}")
        start = time.monotonic()
        with pytest.raises(RegistryDown, match=words) as refused:
            asyncio.run(Registry.open(url, tmp_path / "data"))
        assert time.monotonic() - start < 10
        assert "wrong" not in refused.value.message.partition("registry at ")[2].partition(" ")[0]


def test_a_redis_that_cannot_write_to_its_disk_says_so(server: RedisServer, tmp_path: Path) -> None:
    """MISCONF, as a server answers whose snapshots fail; then a wrong type, which has no words of its own."""

    async def story() -> None:
        registry = await _opened(server, tmp_path)
        with server.client() as client:
            (server.folder / "dump.rdb").mkdir()
            client.config_set("save", "3600 1")
            client.set("other", "x")
            client.bgsave()
            await eventually(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", 20, "it failed")
            await _refused(registry.publish("default", "mood", *adapter(1), actor="t"), "can't write to its disk")
            client.config_set("save", "")
            client.config_set("stop-writes-on-bgsave-error", "no")
            client.set("softmux:t:default:tasks", "not a sorted set")
            await _refused(registry.publish("default", "mood", *adapter(1), actor="t"), "WRONGTYPE")
        await registry.close()

    asyncio.run(story())


def test_what_is_read_while_the_registry_is_wiped_is_not_taken_for_it(server: RedisServer, tmp_path: Path) -> None:
    async def story() -> None:
        registry = await Registry.open(server.url, tmp_path / "data")
        await registry.publish("default", "mood", *adapter(1), actor="t")
        _, secret = await registry.keys.create_key("default", "admin", actor="t")
        await registry.catalog.reload()
        await registry.tenants.reload()
        with server.client() as client:
            client.flushall()
        for read in (
            registry.keys.reload(),
            registry.tenants.reload(),
            registry.catalog.reload(),
            registry.catalog.refresh("default", "mood"),
        ):
            await _refused(read, "there is no registry")
        assert registry.keys.authenticate(secret) is not None
        assert registry.tenants.get("default").name == "default"
        assert _resolved(registry) == 1
        await registry.close()

    asyncio.run(story())


def test_nothing_is_written_where_the_registry_is_gone_and_nobody_has_noticed(
    server: RedisServer, tmp_path: Path
) -> None:
    async def story() -> None:
        registry = await Registry.open(server.url, tmp_path / "data")  # it does not follow, and so never notices
        await registry.publish("default", "mood", *adapter(1), actor="t")
        budgets = Budgets(server.url, "process")
        with server.client() as client:
            client.flushall()
            for change in (
                registry.publish("default", "mood", *adapter(2), actor="t"),
                registry.activate("default", "mood", 1, actor="t"),
                registry.share("default", "mood", None, actor="t"),
                registry.delete("default", "mood", actor="t"),
                registry.tenants.create("acme", actor="t"),
                registry.tenants.delete("acme", actor="t"),
                registry.keys.create_key("default", "user", actor="t"),
                registry.usage.flush("process", 1, [(UsageKey("2026-01-01", "default", "mood"), Used(requests=1))]),
                budgets.beat(),
            ):
                await _refused(change, "there is no registry at")
            assert not client.keys()
        await budgets.close()
        await registry.close()

    asyncio.run(story())


def test_what_is_read_before_a_backup_is_put_back_is_not_taken_for_it(server: RedisServer, tmp_path: Path) -> None:
    async def story() -> None:
        registry = await Registry.open(server.url, tmp_path / "data")
        connection = Connection(server.url)
        with server.client() as client:

            async def read() -> list[bytes]:
                client.flushall()
                found: list[bytes] = await connection.call(lambda client: client.hvals("softmux:keys"))
                client.set(ID, "put back")
                return found

            with pytest.raises(RegistryDown, match="there is no registry"):
                await connection.mirrored(read)
        await connection.close()
        await registry.close()

    asyncio.run(story())


def test_a_wiped_registry_is_no_truth_and_a_new_one_in_its_place_is(
    server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        registry = await _opened(server, tmp_path)
        await registry.publish("default", "mood", *adapter(1), actor="t")
        _, secret = await registry.keys.create_key("default", "admin", actor="t")
        await eventually(lambda: registry.keys.authenticate(secret) is not None, 30, "the key is known")
        with server.client() as client:
            kept = {key: client.dump(key) for key in client.scan_iter()}
            client.flushall()
            await eventually(lambda: registry.away is not None, 30, "it is missed")
            assert "there is no registry" in caplog.text
            assert _resolved(registry) == 1, "what is served goes on being served"
            assert registry.keys.authenticate(secret) is not None
            for operation in (
                registry.publish("default", "mood", *adapter(2), actor="t"),
                registry.delete("default", "mood", actor="t"),
                registry.versions("default", "mood"),
                registry.keys.create_key("default", "user", actor="t"),
            ):
                await _refused(operation, "no registry at.*softmux registry restore")
            assert not client.keys(), "nothing was written into the void"
            for key, data in kept.items():
                client.restore(key, 0, data)
            await eventually(lambda: registry.away is None, 30, "it is back")
            await registry.publish("default", "mood", *adapter(2), actor="t")
            assert _resolved(registry) == 2

            client.flushall()
            another = await Registry.open(server.url, tmp_path / "data")
            await eventually(lambda: "another registry than before" in caplog.text, 30, "the new one is read")
            assert len(registry.catalog) == 0
            assert registry.keys.authenticate(secret) is None
            assert registry.keys.has_keys(), "it never opens the server"
            await another.close()
        await registry.close()

    asyncio.run(story())


def test_a_process_that_must_not_begin_a_registry_does_not(server: RedisServer, tmp_path: Path) -> None:
    with pytest.raises(RegistryDown, match="there is no registry"):
        asyncio.run(Registry.open(server.url, tmp_path / "data", begin=False))
    with server.client() as client:
        assert not client.keys()


@pytest.mark.parametrize("later", [0, 1, 2, 3])
def test_a_failover_to_an_older_state_is_seen_whatever_was_written_since(
    server: RedisServer, tmp_path: Path, later: int
) -> None:
    """The replica that took over lacks the last two changes, and has `later` others by the time it is asked."""

    async def story() -> None:
        registry = await _opened(server, tmp_path)
        await registry.publish("default", "kept", *adapter(0), actor="t")
        with server.client() as client, RedisServer(tmp_path / "promoted") as promoted, promoted.client() as other:
            _copy(client, other)
            for name in ("lost", "gone"):
                await registry.publish("default", name, *adapter(name), actor="t")
            behind = await Registry.open(promoted.url, tmp_path / "data")
            for number in range(later):
                await behind.publish("default", f"later-{number}", *adapter(number), actor="t")
            await behind.close()
            server.kill()
            _resume_as(server, promoted)
            expected = {"kept", *(f"later-{number}" for number in range(later))}
            await eventually(
                lambda: {name for name in ("kept", "lost", "gone", *expected) if _resolved(registry, name)} == expected,
                10,
                "memory is what the promoted server has",
            )
        await registry.close()

    asyncio.run(story())


def _resume_as(server: RedisServer, promoted: RedisServer) -> None:
    """`promoted`'s data behind `server`'s address."""
    promoted.kill()
    server.folder = promoted.folder
    server.start()
    promoted.process = server.process


def test_a_slow_redis_is_given_up_within_a_second(server: RedisServer, tmp_path: Path) -> None:
    """Every reply takes 0.6 s: no single read times out, the operation does."""

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, delay: float) -> None:
            while data := await source.read(65536):
                await asyncio.sleep(delay)
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, forth, 0.0), pump(back, writer, 0.6), return_exceptions=True)

    async def story() -> None:
        await (await Registry.open(server.url, tmp_path / "data")).close()
        relaying = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = relaying.sockets[0].getsockname()[1]
        await _refused(Registry.open(f"redis://127.0.0.1:{port}", tmp_path / "data", begin=False), "does not answer")
        relaying.close()

    asyncio.run(story())


@pytest.mark.parametrize("connection", [Connection, SyncConnection])
@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1:6379",
        "http://127.0.0.1:6379",
        "redis://127.0.0.1:secret",
        "redis://:secret/more@127.0.0.1:1",
        "redis://:secret@h/0?foo=1",
    ],
)
def test_what_is_no_address_is_told_without_its_password(
    connection: type[Connection | SyncConnection], url: str
) -> None:
    with pytest.raises(RegistryDown, match=r"write redis://HOST:PORT") as refused:
        connection(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://me:secret@h:1/2?password=secret", "rediss://h:1/2"),
        ("redis://:12/secret@h", "redis://h"),
        ("redis://h/0?password=a@secret", "redis://…"),
        ("s3://KEY:a?secret@bucket", "s3://…"),
        ("unix:///run/a@b/redis.sock?db=1", "unix:///run/a@b/redis.sock"),
        ("unix://:secret@/run/redis.sock", "unix:///run/redis.sock"),
        ("file:///srv/a@b/c", "file:///srv/a@b/c"),
        ("secret@h", "…"),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, seen: str) -> None:
    assert shown(url) == seen


def test_looking_an_address_over_takes_none_of_its_connections(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        connection = SyncConnection(f"{server.url}?max_connections=1")
        assert connection.call(lambda client: client.ping())
        connection.close()
