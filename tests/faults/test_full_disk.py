"""A disk that is full, made by limits on the size of files: of Redis' log, and of the blob store's files."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry.registry_fixtures import BASE, adapter
from softmux.errors import RegistryDown
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.registry import Registry
from softmux.registry.verify import verify
from support.redis_server import RedisServer

_UPLOADER = """
import asyncio, resource, sys
from pathlib import Path
from registry.registry_fixtures import LARGE, adapter
from softmux.errors import RegistryDown
from softmux.registry.registry import Registry

async def main():
    registry = await Registry.open(sys.argv[1], Path(sys.argv[2]))
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * LARGE, hard))
    await registry.publish("default", "fits", *adapter("fits", size=LARGE), actor="t")
    try:
        await registry.publish("default", "large", *adapter("large", size=5 * LARGE), actor="t")
    except RegistryDown as error:
        print(error.message)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    await registry.publish("default", "room", *adapter("room", size=5 * LARGE), actor="t")
    await registry.close()

asyncio.run(main())
"""


def test_redis_has_no_disk_left(tmp_path: Path) -> None:
    """It ends itself rather than acknowledge what it can't keep. With room again, all it acknowledged is there."""

    async def story() -> None:
        with RedisServer(tmp_path / "redis") as server:
            registry = await Registry.open(server.url, tmp_path / "data")
            await registry.follow()
            server.leave_room(60_000)
            acknowledged: dict[str, str] = {}
            for number in range(100):
                manifest, files = adapter(number, size=3000)
                start = time.monotonic()
                try:
                    await registry.publish("default", f"task-{number}", manifest, files, actor="t")
                except RegistryDown:
                    assert time.monotonic() - start < 10
                    break
                acknowledged[f"task-{number}"] = manifest.digest
            assert 3 < len(acknowledged) < 60
            for task, digest in acknowledged.items():
                assert registry.catalog.resolve("default", task, None, BASE).manifest.digest == digest
            assert server.process is not None
            assert server.process.wait(30) != 0
            with pytest.raises(RegistryDown):
                await registry.delete("default", "task-0", actor="t")
            server.start()  # with room
            found = await Registry.open(server.url, tmp_path / "data", begin=False)
            for task, digest in acknowledged.items():
                assert (await found.active("default", task, BASE)).manifest.digest == digest
            connection = Connection(server.url)
            assert not (await verify(connection, BlobStore(found.blob_url))).wrong
            await connection.close()
            await found.close()
            await registry.publish("default", "again", *adapter("again"), actor="t")
            await registry.close()

    asyncio.run(story())


def test_the_blob_store_has_no_disk_left(tmp_path: Path) -> None:
    """In a process of its own, since the limit holds for all its files."""

    async def check(url: str) -> None:
        registry = await Registry.open(url, tmp_path / "data", begin=False)
        assert (await registry.active("default", "fits", BASE)).version == 1
        assert (await registry.active("default", "room", BASE)).version == 1
        assert await registry._versions.names("default", after=None, prefix="", limit=10) == ["fits", "room"]
        connection, blobs = Connection(url), BlobStore(registry.blob_url)
        checked = await verify(connection, blobs)
        assert (checked.wrong, checked.unused, checked.versions) == ((), (), 2)
        await registry.collect(grace=0)
        blobs.sweep(0.0)
        assert len([path for path in (tmp_path / "data" / "blobs").rglob("*") if path.is_file()]) == 2
        await connection.close()
        await registry.close()

    with RedisServer(tmp_path / "redis") as server:
        command = [sys.executable, "-c", _UPLOADER, server.url, str(tmp_path / "data")]
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "check that it is reachable and not full" in done.stdout
        asyncio.run(check(server.url))
