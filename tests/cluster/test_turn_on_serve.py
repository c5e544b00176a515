"""The wait for a replica on a Ray Serve of its own: what is given up, and what Serve must not run any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'softmux[ray]'")

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from softmux.cluster.turn import Turn
from softmux.errors import Overloaded

pytestmark = pytest.mark.nightly


@serve.deployment(max_ongoing_requests=1, ray_actor_options={"num_cpus": 0})
class Slow:
    """Writes each request's name down, and answers once a file of the name is there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def answer(self, name: str) -> AsyncIterator[str]:
        with (self._folder / "had").open("a") as had:
            had.write(f"{name}\n")
        while not (self._folder / name).exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
        yield name
        yield "end"


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[DeploymentHandle[Any]]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=80 << 20)
    try:
        yield serve.run(Slow.bind(tmp_path), name="slow", route_prefix=None)
        serve.shutdown()
    finally:
        ray.shutdown()


def test_what_waits_for_a_full_replica_is_given_up_and_what_a_replica_has_is_not(
    slow: DeploymentHandle[Any], tmp_path: Path
) -> None:
    ask = slow.options(method_name="answer", stream=True).remote

    async def parts(name: str, seconds: float) -> list[str]:
        return [part async for part in Turn(seconds).of(ask(name), None)]

    async def story() -> None:
        first = asyncio.ensure_future(parts("first", 0.05))
        while not (tmp_path / "had").exists():  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        with pytest.raises(Overloaded, match=r"no replica took the request within 0\.5 s"):
            await parts("second", 0.5)
        assert not first.done()  # though it has long waited for longer
        (tmp_path / "first").touch()
        assert await asyncio.wait_for(first, 60) == ["first", "end"]
        (tmp_path / "third").touch()
        assert await asyncio.wait_for(parts("third", 60), 60) == ["third", "end"]

    asyncio.run(story())
    assert (tmp_path / "had").read_text().split() == ["first", "third"]
