from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import LARGE, adapter
from softmux.errors import BlobDamaged, RegistryDown, VersionNotFound
from softmux.registry.keyspace import ID
from softmux.registry.reader import BlobReader
from softmux.registry.registry import Registry


def test_threads_read_small_and_large_versions(registry: Registry, runner: asyncio.Runner) -> None:
    for seed, size in (("small", 100), ("large", LARGE)):
        runner.run(registry.publish("default", seed, *adapter(seed, size=size), actor="t"))
    reader = BlobReader(registry.url, registry.blob_url)
    wrong: list[str] = []

    def read(seed: str, size: int) -> None:
        manifest, files = adapter(seed, size=size)
        for _ in range(20):
            if reader.read("default", manifest.digest) != (manifest, dict(files)):
                wrong.append(seed)

    threads = [
        threading.Thread(target=read, args=args) for args in (("small", 100), ("large", LARGE)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    reader.close()


def test_a_deleted_task_can_be_read_by_requests_that_run(registry: Registry, runner: asyncio.Runner) -> None:
    manifest, files = adapter("mood", size=LARGE)
    runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    runner.run(registry.delete("default", "mood", actor="t"))
    runner.run(registry.collect())
    reader = BlobReader(registry.url, registry.blob_url)
    assert reader.read("default", manifest.digest)[1] == dict(files)
    reader.close()


def test_what_the_reader_refuses(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    manifest, files = adapter("mood", size=LARGE)
    small, small_files = adapter("small")
    runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    runner.run(registry.publish("default", "small", small, small_files, actor="t"))
    reader = BlobReader(registry.url, registry.blob_url)
    with pytest.raises(VersionNotFound, match="upload it again"):
        reader.read("acme", manifest.digest)
    with pytest.raises(BlobDamaged, match="blob URL"):
        BlobReader(registry.url, None).read("default", manifest.digest)
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            path.write_bytes(b"\0" * LARGE)
    with pytest.raises(BlobDamaged, match="is damaged"):
        reader.read("default", manifest.digest)
    with redis.Redis.from_url(registry.url) as client:
        for entry in small.files:
            client.hset("softmux:t:default:files", entry.sha256, b"other bytes")
    with pytest.raises(BlobDamaged, match="damaged in Redis"):
        reader.read("default", small.digest)
    runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    assert reader.read("default", manifest.digest)[1] == dict(files), "uploading it again heals it"
    reader.close()


def test_of_a_registry_that_is_missing_no_version_has_to_be_sent_again(
    registry: Registry, runner: asyncio.Runner
) -> None:
    manifest, files = adapter("mood")
    runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    reader = BlobReader(registry.url, registry.blob_url)
    with redis.Redis.from_url(registry.url) as client:
        client.delete("softmux:t:default:files")
        with pytest.raises(BlobDamaged):
            reader.read("default", manifest.digest)
        client.delete(ID)
        with pytest.raises(RegistryDown, match="there is no registry at"):
            reader.read("default", manifest.digest)
        client.flushall()
    with pytest.raises(RegistryDown, match="there is no registry at"):
        reader.read("default", manifest.digest)
    reader.close()


def test_without_redis_it_says_so(tmp_path: Path) -> None:
    reader = BlobReader(f"unix://{tmp_path}/nothing.sock", None)
    with pytest.raises(RegistryDown, match="check that Redis runs"):
        reader.read("default", adapter()[0].digest)
