from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from registry.registry_fixtures import BASE, LARGE, OTHER_BASE, adapter
from softmux.errors import InvalidRequest, NotFound, TaskNotFound, VersionNotFound
from softmux.registry.registry import Registry


def test_versions_count_up_and_the_newest_is_active(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        first = await registry.publish("default", "mood", *adapter(1), actor="t", warnings=("odd norms",))
        second = await registry.publish("default", "mood", *adapter(2), actor="t")
        assert (first.created, first.version.version, first.version.active) == (True, 1, True)
        assert (second.created, second.version.version, second.version.active) == (True, 2, True)
        assert first.version.warnings == ("odd norms",)
        assert [(v.version, v.active) for v in await registry.versions("default", "mood")] == [(2, True), (1, False)]
        assert await registry.active("default", "mood", BASE) == second.version
        assert (await registry.version("default", "mood", 1)).manifest == adapter(1)[0]

    runner.run(story())


def test_the_same_content_is_the_same_version_and_becomes_active(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        first = await registry.publish("default", "mood", *adapter(1), actor="t")
        await registry.publish("default", "mood", *adapter(2), actor="t")
        quiet = await registry.publish("default", "mood", *adapter(1), activate=False, actor="t")
        assert (quiet.created, quiet.version.version, quiet.version.active) == (False, 1, False)
        again = await registry.publish("default", "mood", *adapter(1), actor="t")
        assert not again.created
        assert again.version == first.version
        assert (await registry.active("default", "mood", BASE)).version == 1

    runner.run(story())


def test_a_version_not_activated_waits(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        waiting = await registry.publish("default", "mood", *adapter(1), activate=False, actor="t")
        assert not waiting.version.active
        with pytest.raises(VersionNotFound, match="no active version"):
            await registry.active("default", "mood", BASE)
        assert (await registry.tasks("default", BASE)).data == ()
        assert (await registry.activate("default", "mood", 1, actor="t")).active
        assert (await registry.active("default", "mood", BASE)).version == 1

    runner.run(story())


def test_bases_have_their_own_pointers(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.publish("default", "mood", *adapter(1), actor="t")
        await registry.publish("default", "mood", *adapter(1, base=OTHER_BASE), actor="t")
        assert (await registry.active("default", "mood", BASE)).version == 1
        assert (await registry.active("default", "mood", OTHER_BASE)).version == 2
        assert [v.active for v in await registry.versions("default", "mood")] == [True, True]

    runner.run(story())


def test_numbers_are_never_used_again(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.publish("default", "mood", *adapter(1), actor="t")
        await registry.delete("default", "mood", actor="t")
        for question in (registry.active("default", "mood", BASE), registry.versions("default", "mood")):
            with pytest.raises(TaskNotFound):
                await question
        with pytest.raises(TaskNotFound):
            await registry.delete("default", "mood", actor="t")
        assert (await registry.publish("default", "mood", *adapter(1), actor="t")).version.version == 2
        with pytest.raises(VersionNotFound):
            await registry.version("default", "mood", 1)

    runner.run(story())


def test_publish_if_absent_never_undoes_what_was_done(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        made = await registry.publish_if_absent("default", "mood", *adapter(1), actor="t")
        assert made is not None
        assert made.version.active
        assert await registry.publish_if_absent("default", "mood", *adapter(1), actor="t") is None
        assert await registry.publish_if_absent("default", "mood", *adapter(2), actor="t") is None
        await registry.delete("default", "mood", actor="t")
        assert await registry.publish_if_absent("default", "mood", *adapter(2), actor="t") is None
        with pytest.raises(TaskNotFound):
            await registry.active("default", "mood", BASE)

    runner.run(story())


def test_files_come_back_byte_for_byte(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    async def story() -> None:
        for number, size in enumerate((0, 1, 64 << 10, (64 << 10) + 1, LARGE), start=1):
            manifest, files = adapter(number, size=size)
            await registry.publish("default", "mood", manifest, files, actor="t")
            for name, data in files.items():
                assert await registry.file("default", "mood", number, name) == data
        with pytest.raises(NotFound, match=r"adapter_config\.json"):
            await registry.file("default", "mood", 1, "../secrets")

    runner.run(story())
    assert sum(path.is_file() for path in (tmp_path / "blobs").rglob("*")) == 2, "only the large ones"


def test_tenants_are_apart(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        with pytest.raises(NotFound, match="tenant create acme"):
            await registry.publish("acme", "mood", *adapter(1), actor="t")
        await registry.tenants.create("acme", actor="t")
        await registry.publish("acme", "mood", *adapter(1), actor="t")
        with pytest.raises(TaskNotFound):
            await registry.active("default", "mood", BASE)
        assert (await registry.publish("default", "mood", *adapter(2), actor="t")).version.version == 1
        await registry.delete("acme", "mood", actor="t")
        assert (await registry.active("default", "mood", BASE)).version == 1

    runner.run(story())


def test_names_that_would_leave_their_place_are_refused(registry: Registry, runner: asyncio.Runner) -> None:
    for name in ("", "A", "a:b", "../a", "a\n", "-a", "a" * 65):
        with pytest.raises(InvalidRequest, match="not allowed"):
            runner.run(registry.publish("default", name, *adapter(1), actor="t"))


def test_unknown_versions_say_so(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        with pytest.raises(TaskNotFound):
            await registry.activate("default", "mood", 1, actor="t")
        await registry.publish("default", "mood", *adapter(1), actor="t")
        with pytest.raises(VersionNotFound, match="no version 7"):
            await registry.activate("default", "mood", 7, actor="t")

    runner.run(story())


def test_listing_is_in_pages_by_name(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        names = sorted(f"{kind}-{number}" for kind in ("ask", "tell") for number in range(7))
        for name in reversed(names):
            await registry.publish("default", name, *adapter(name), actor="t")
        await registry.publish("default", "another-base", *adapter(0, base=OTHER_BASE), actor="t")
        for prefix in ("", "ask", "tell-", "zzz"):
            seen: list[str] = []
            cursor = None
            while True:
                page = await registry.tasks("default", BASE, limit=3, cursor=cursor, prefix=prefix)
                assert len(page.data) <= 3
                seen += [record.task for record in page.data]
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == [name for name in names if name.startswith(prefix)]

    runner.run(story())


def test_many_at_once_get_different_numbers(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        made = await asyncio.gather(
            *(registry.publish("default", "mood", *adapter(n % 10, size=LARGE), actor="t") for n in range(30))
        )
        assert sum(published.created for published in made) == 10
        assert {published.version.version for published in made} == set(range(1, 11))

    runner.run(story())


def test_a_registry_opens_again_with_all_it_had(tmp_path: Path, runner: asyncio.Runner) -> None:
    async def story() -> None:
        for number in (1, 2, 3):
            registry = await Registry.open(None, tmp_path)
            try:
                published = await registry.publish("default", "mood", *adapter(number), actor="t")
                assert published.version.version == number
                assert (
                    await registry.file("default", "mood", 1, "adapter_model.safetensors")
                    == dict(adapter(1)[1])["adapter_model.safetensors"]
                )
            finally:
                await registry.close()

    runner.run(story())
