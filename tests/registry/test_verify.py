from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import redis

from registry.registry_fixtures import BASE, LARGE, adapter
from softmux.registry.backup import backup
from softmux.registry.blobs import BlobStore
from softmux.registry.connection import Connection
from softmux.registry.registry import Registry
from softmux.registry.verify import Findings, verify


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else changes these registries."""
    monkeypatch.setattr("softmux.registry.verify._PAUSES", (0.0, 0.01))


def _blob_files(data: Path) -> list[Path]:
    return [path for path in (data / "blobs").rglob("*") if path.is_file() and "quarantine" not in path.parts]


async def _verified(registry: Registry, heal_from: Path | None = None) -> Findings:
    connection = Connection(registry.url)
    try:
        return await verify(connection, BlobStore(registry.blob_url), heal_from=heal_from)
    finally:
        await connection.close()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("HSET", "softmux:t:default:active:mood", BASE, "7"), "mood has 7 active"),
        (("HDEL", "softmux:t:default:manifests", "{digest}"), "the manifest {digest} is missing"),
        (("HSET", "softmux:t:default:refs", "{digest}", "0"), "is counted for 0 versions, and 1 have it"),
        (("HDEL", "softmux:t:default:filerefs", "{sha}"), "might be collected"),
        (("ZADD", "softmux:t:default:garbage", "1", "{digest}"), "is in use, and counts as garbage"),
        (("ZREM", "softmux:t:default:tasks", "mood"), "the list of tasks lacks mood"),
        (("HSET", "softmux:t:default:counters", "mood", "0"), "mood@1 is beyond the task's counter"),
        (("DEL", "softmux:t:default:digests:mood"), "mood@1 is not found by its digest"),
        (("HSET", "softmux:t:default:versions:mood", "1", "{"), "mood@1 can't be read in Redis"),
        (("HSET", "softmux:t:default:versions:mood", "1", "{other}"), "is not what its digest"),
        (("HSET", "softmux:keys", "k", "{}"), "key k can't be read"),
        (("HDEL", "softmux:tenants", "default"), "default: has data, and is no tenant"),
        (("HDEL", "softmux:t:default:files", "{sha}"), r"missing or damaged in Redis.*\(in mood@1\)"),
        (("HSET", "softmux:t:default:files", "{sha}", "other"), r"missing or damaged in Redis.*\(in mood@1\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:2]),
)
def test_what_is_wrong_is_named(
    registry: Registry, runner: asyncio.Runner, command: tuple[str, ...], words: str
) -> None:
    manifest, files = adapter(1)
    runner.run(registry.publish("default", "mood", manifest, files, actor="t"))
    found = runner.run(_verified(registry))
    assert (found.wrong, found.tasks, found.versions, found.files) == ((), 1, 1, 2)
    with redis.Redis.from_url(registry.url) as client:
        stored = client.hget("softmux:t:default:versions:mood", "1").decode()
        other = stored.replace('"size":100', '"size":101')
        assert other != stored
        named = {"digest": manifest.digest, "sha": manifest.files[1].sha256}
        words_sent = [other if part == "{other}" else part for part in command]
        client.execute_command(
            *(
                part if part == "{" else part.format(**named) if "{d" in part or "{s" in part else part
                for part in words_sent
            )
        )
    wrong = runner.run(_verified(registry)).wrong
    assert wrong
    with pytest.raises(AssertionError, match=words.format(**named) if "{" in words else words):
        raise AssertionError("\n".join(wrong))


def test_flipped_bits_are_found_put_aside_and_healed(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    """From a backup; without one, named, and put right by the next upload. With another tenant, from there."""

    async def story() -> None:
        manifest, files = adapter("large", size=LARGE)
        await registry.publish("default", "large", manifest, files, actor="t")
        connection = Connection(registry.url)
        await backup(connection, BlobStore(registry.blob_url), tmp_path / "registry.tar")
        await connection.close()

        _flip(tmp_path)
        found = await _verified(registry)
        assert len(found.wrong) == 1
        assert "is damaged" in found.wrong[0]
        assert "large@1" in found.wrong[0]
        assert "is missing" in (await _verified(registry)).wrong[0], "it was put aside"

        found = await _verified(registry, tmp_path / "registry.tar")
        assert (found.wrong, len(found.healed)) == ((), 1)
        assert (
            await registry.file("default", "large", 1, "adapter_model.safetensors")
            == files["adapter_model.safetensors"]
        )

        await registry.tenants.create("acme", actor="t")
        await registry.publish("acme", "same", manifest, files, actor="t")
        _flip(tmp_path, "default")
        with redis.Redis.from_url(registry.url) as client:
            client.hdel("softmux:t:default:files", manifest.files[0].sha256)
        found = await _verified(registry)
        assert (found.wrong, len(found.healed)) == ((), 2)
        assert not (await _verified(registry)).healed

    runner.run(story())


def _flip(data: Path, tenant: str = "") -> None:
    [blob] = [path for path in _blob_files(data) if not tenant or tenant in path.parts]
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)


def test_what_nothing_uses_is_listed_and_is_no_fault(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def story() -> None:
        blobs = BlobStore(registry.blob_url)
        manifest, files = adapter("stray", size=LARGE)
        blobs.put("default", manifest.files[1].sha256, files[manifest.files[1].name])
        found = await _verified(registry)
        assert found.wrong == ()
        assert found.unused == (f"default: {manifest.files[1].sha256}",)
        await registry.publish("default", "large", manifest, files, actor="t")
        await registry.delete("default", "large", actor="t")
        found = await _verified(registry)
        assert (found.wrong, found.unused) == ((), ()), "what waits to be collected is known"

    runner.run(story())


def test_what_a_deleted_tenant_leaves_is_no_fault(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", actor="t")
        await registry.publish("acme", "large", *adapter("gone", size=LARGE), actor="t")
        await registry.keys.create_key("acme", "user", actor="t")
        await registry.delete_tenant("acme", force=True, actor="t")
        found = await _verified(registry)
        assert (found.wrong, found.unused) == ((), ())

    runner.run(story())


def test_what_killed_writers_left_is_swept_once_it_is_old(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    manifest, files = adapter("large", size=LARGE)
    runner.run(registry.publish("default", "large", manifest, files, actor="t"))
    [blob] = _blob_files(tmp_path)
    left = [blob.with_name(f"{blob.name}#{number}") for number in (1, 2)]
    for path in left:
        path.write_bytes(b"half of it")
    os.utime(left[0], (0, 0))
    runner.run(registry.collect())
    assert [path.exists() for path in left] == [False, True]
    assert blob.exists()
    assert not list(BlobStore((tmp_path / "other").as_uri()).names())
    assert list(BlobStore(registry.blob_url).names()) == [("default", manifest.files[1].sha256)]
