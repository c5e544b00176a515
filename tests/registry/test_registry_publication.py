from __future__ import annotations

import asyncio

from registry_fixtures import BASE, adapter

from softmux.registry.registry import Registry


def test_publish_makes_versions_that_count_up(registry: Registry, runner: asyncio.Runner) -> None:
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
