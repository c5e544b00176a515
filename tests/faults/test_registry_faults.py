"""The registry when Redis or its holders die: what was acknowledged stays, and what was not is whole or absent."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.registry_fixtures import BASE, LARGE, adapter, is_running, pid_if_up, server_pid
from softmux.errors import RegistryDown, SoftmuxError
from softmux.registry.reader import BlobReader
from softmux.registry.registry import Registry
from support.waiting import eventually, wait_for

_JOINER = """
import asyncio, sys
from pathlib import Path
from softmux.registry.registry import Registry

async def main():
    registry = await Registry.open(None, Path(sys.argv[1]))
    if sys.argv[2] == "key":
        print((await registry.keys.create_key("default", "user", actor="t"))[1], flush=True)
    else:
        await registry.follow()
        print("open", flush=True)
        await asyncio.Event().wait() if sys.argv[2] == "hold" else None
    await registry.close()

import signal
try:
    with asyncio.Runner() as runner:
        loop, task = runner.get_loop(), None
        async def cancellable():
            loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
            await main()
        runner.run(cancellable())
except asyncio.CancelledError:
    pass
"""


def _joiner(data: Path, what: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", _JOINER, str(data), what], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=[pytest.mark.nightly, pytest.mark.timeout(1800)])])
def test_no_acknowledged_upload_is_lost_when_redis_is_killed(tmp_path: Path, kills: int) -> None:
    """Four clients upload, small and large, while Redis is killed over and over."""
    acknowledged: dict[tuple[str, int], str] = {}
    tried: dict[str, set[str]] = {}
    refused = 0

    async def upload(client: int, registry: Registry, done: asyncio.Event) -> None:
        nonlocal refused
        for number in range(100_000):
            if done.is_set():
                return
            task = f"task-{client}-{number % 5}"
            manifest, files = adapter(f"{client}-{number}", size=LARGE if number % 3 == 0 else 500)
            tried.setdefault(task, set()).add(manifest.digest)
            try:
                made = await registry.publish("default", task, manifest, files, actor="t")
            except RegistryDown:
                refused += 1
                continue
            assert made.created
            assert made.version.manifest == manifest
            assert (task, made.version.version) not in acknowledged, "no number names two things"
            acknowledged[task, made.version.version] = manifest.digest

    async def kill(registry: Registry, done: asyncio.Event) -> None:
        for _ in range(kills):
            before, goal = server_pid(registry.url), len(acknowledged) + random.randint(3, 12)
            await eventually(lambda goal=goal: len(acknowledged) >= goal, 60, "uploads go on")  # type: ignore[misc]
            os.kill(before, signal.SIGKILL)
            await asyncio.to_thread(
                wait_for, lambda before=before: pid_if_up(registry.url) not in (None, before), 30, "back"
            )
        done.set()

    async def story() -> None:
        registry = await Registry.open(None, tmp_path)
        done = asyncio.Event()
        await asyncio.gather(kill(registry, done), *(upload(client, registry, done) for client in range(4)))
        await registry.close()

        registry = await Registry.open(None, tmp_path)  # a cold start reads everything from disk
        reader = BlobReader(registry.url, registry.blob_url)
        told = await _published(registry)
        found = 0
        for task, digests in tried.items():
            try:
                versions = await registry.versions("default", task)
            except SoftmuxError:
                versions = []
            numbers = {record.version: record.manifest.digest for record in versions}
            for (name, number), digest in acknowledged.items():
                assert name != task or numbers.get(number) == digest, f"lost {name}@{number}"
            for record in versions:
                assert record.manifest.digest in digests
                assert told.pop((task, record.version), None) == record.manifest.digest, "the audit log has it, once"
                manifest, files = reader.read("default", record.manifest.digest)  # raises where a part is missing
                assert manifest == record.manifest
                assert set(files) == {entry.name for entry in manifest.files}
                found += 1
            assert sum(record.active for record in versions) == bool(versions)
        reader.close()
        await registry.close()
        print(f"{kills} kills: {len(acknowledged)} acknowledged, {refused} refused, {found} found, all whole")
        assert found >= len(acknowledged)
        assert not told, "the audit log has what is not there"

    asyncio.run(story())


async def _published(registry: Registry) -> dict[tuple[str | None, int | None], str | None]:
    """What the audit log says was published: (task, version) -> digest."""
    found: dict[tuple[str | None, int | None], str | None] = {}
    after: str | None = None
    while True:
        page = await registry.audit.read(after=after, limit=1000)
        for entry in page.data:
            assert entry.action == "task.publish"
            assert (entry.task, entry.version) not in found
            found[entry.task, entry.version] = entry.digest
        if page.next_after is None:
            return found
        after = page.next_after


def test_while_redis_is_away_changes_are_refused_within_a_second_and_resolve_goes_on(tmp_path: Path) -> None:
    """A Redis from outside, that nobody restarts: stopped (it hangs), then gone, then back."""

    async def story() -> None:
        server = await Registry.open(None, tmp_path / "server")  # stands for a Redis somewhere
        registry = await Registry.open(server.url, tmp_path / "client")
        await registry.follow()
        made = await registry.publish("default", "mood", *adapter(1), actor="t")
        pid = server_pid(server.url)
        os.kill(pid, signal.SIGSTOP)
        try:
            for question in (
                registry.publish("default", "mood", *adapter(2), actor="t"),
                registry.activate("default", "mood", 1, actor="t"),
                registry.versions("default", "mood"),
                registry.keys.create_key("default", "user", actor="t"),
            ):
                start = time.monotonic()
                with pytest.raises(RegistryDown, match="check that Redis runs"):
                    await question
                assert time.monotonic() - start < 10
                assert registry.catalog.resolve("default", "mood", None, BASE) == made.version
        finally:
            os.kill(pid, signal.SIGCONT)
        again = await registry.publish("default", "mood", *adapter(3), actor="t")
        assert registry.catalog.resolve("default", "mood", None, BASE) == again.version
        await server.close()
        assert not is_running(pid)
        start = time.monotonic()
        with pytest.raises(RegistryDown):
            await registry.delete("default", "mood", actor="t")
        assert time.monotonic() - start < 10
        assert registry.catalog.resolve("default", "mood", None, BASE) == again.version
        server = await Registry.open(None, tmp_path / "server")
        await server.publish("default", "mood", *adapter(4), actor="t")
        await eventually(
            lambda: registry.catalog.resolve("default", "mood", None, BASE).manifest == adapter(4)[0],
            3,
            "followed again",
        )
        await registry.close()
        await server.close()

    asyncio.run(story())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_serving_and_key_making_processes_join_in_any_order(tmp_path: Path, number: signal.Signals) -> None:
    """A key made before the server runs, one while it runs, one after it ended."""
    secrets = []

    def make_key() -> None:
        with _joiner(tmp_path, "key") as process:
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 0
            secrets.append(output.strip())

    make_key()
    with _joiner(tmp_path, "hold") as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "open\n"
        pid = server_pid(f"unix://{tmp_path}/registry/valkey.sock")
        make_key()
        assert is_running(pid), "a passing joiner does not end what others hold"
        server.send_signal(number)
        assert server.wait(20) == (0 if number == signal.SIGTERM else -number)
    wait_for(lambda: not is_running(pid), 60, "the server has ended with its last holder")
    make_key()

    async def check() -> None:
        registry = await Registry.open(None, tmp_path)
        await registry.follow()
        assert all(registry.keys.authenticate(secret) for secret in secrets)
        await registry.close()

    asyncio.run(check())


def test_many_that_start_at_once_share_one_server(tmp_path: Path) -> None:
    processes = [_joiner(tmp_path, "key") for _ in range(4)]
    secrets = set()
    for process in processes:
        with process:
            output, _ = process.communicate(timeout=60)
            assert process.returncode == 0
            secrets.add(output.strip())
    assert len(secrets) == 4

    async def check() -> None:
        registry = await Registry.open(None, tmp_path)
        assert len(await registry.keys.list_keys()) == 4
        await registry.close()

    asyncio.run(check())


def test_a_log_cut_short_by_a_crash_loses_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    async def publish(number: int) -> None:
        registry = await Registry.open(None, tmp_path)
        await registry.publish("default", "mood", *adapter(number), actor="t")
        await registry.close()

    asyncio.run(publish(1))
    [log] = (tmp_path / "registry" / "appendonlydir").glob("*.incr.aof")
    whole = log.stat().st_size
    asyncio.run(publish(2))
    data = log.read_bytes()
    assert len(data) > whole
    for cut in range(whole, len(data), max(1, (len(data) - whole) // 6)):  # power failed within the second publication
        log.write_bytes(data[:cut])

        async def check() -> None:
            registry = await Registry.open(None, tmp_path)
            assert [record.version for record in await registry.versions("default", "mood")] == [1]
            assert (await registry.active("default", "mood", BASE)).version == 1
            await registry.close()

        asyncio.run(check())
