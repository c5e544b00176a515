"""softmux's policy under Serve's own routing machinery: replicas are stand-ins, the rest is Ray's."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("ray", reason="the extra `ray` is not installed: pip install 'softmux[ray]'")

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from softmux.cluster.router import AdapterRouter

DEPLOYMENT = DeploymentID(name="Replica", app_name="softmux")


@dataclass
class Stand:
    """A replica as far as Serve's router looks at it."""

    name: str
    max_ongoing_requests: int = 4
    under_way: int = 0

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(unique_id=self.name, deployment_id=DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.under_way

    def push_proxy_handle(self, handle: Any) -> None:
        pass


async def made(*names: str, **options: Any) -> AdapterRouter:
    router = AdapterRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
    router.initialize_state(**options)
    router.update_replicas([Stand(name) for name in names])
    await asyncio.sleep(0.01)
    return router


def asked(number: int, key: str | None, without: tuple[str, ...] = ()) -> PendingRequest:
    metadata = RequestMetadata(request_id=f"{number}", internal_request_id=f"{number}")
    return PendingRequest(args=[], kwargs={"key": key, "without": without}, metadata=metadata)


async def routed(router: AdapterRouter, request: PendingRequest) -> str:
    """As Serve's `AsyncioRouter` does: chosen, counted, told."""
    replica = await router._choose_replica_for_request(request)
    router.on_send_request(replica.replica_id)
    router.on_request_routed(request, replica.replica_id, None)
    return str(replica.replica_id.unique_id)


def test_a_key_goes_where_it_went_and_keys_are_spread() -> None:
    async def run() -> None:
        router = await made("a", "b", "c", free=1000)
        places = {key: await routed(router, asked(number, key)) for number, key in enumerate("abcdefghijkl")}
        again = {key: await routed(router, asked(100 + number, key)) for number, key in enumerate("abcdefghijkl")}
        assert again == places
        assert set(places.values()) == {"a", "b", "c"}

    asyncio.run(run())


def test_a_replica_that_is_full_or_was_lost_is_passed_over() -> None:
    async def run() -> None:
        router = await made("a", "b", free=1000)
        home = await routed(router, asked(0, "key"))
        other = {"a": "b", "b": "a"}[home]
        assert await routed(router, asked(1, "key", without=(home,))) == other
        full = router.curr_replicas[ReplicaID(unique_id=home, deployment_id=DEPLOYMENT)]
        full.under_way = 4  # Serve asks before it believes that one is full
        router.on_new_queue_len_info(full.replica_id, 4)
        assert await routed(router, asked(2, "key")) == other
        assert await routed(await made("a"), asked(3, "key", without=("a",))) == "a"  # there is no other

    asyncio.run(run())


def test_where_all_were_lost_the_one_that_was_lost_first_is_asked() -> None:
    async def run() -> None:
        router = await made("a", "b", "c", free=1000)
        for number, without in enumerate([("a", "b", "c"), ("b", "c", "gone", "a"), ("c", "a", "b")]):
            assert await routed(router, asked(number, "key", without=without)) == without[0]

    asyncio.run(run())


def test_load_is_balanced_within_its_bound() -> None:
    async def run() -> None:
        router = await made("a", "b", "c", "d", free=1, balance=1.25)
        counts = dict.fromkeys("abcd", 0)
        for number in range(8):
            counts[await routed(router, asked(number, "hot"))] += 1
        assert max(counts.values()) <= 3

    asyncio.run(run())


def test_a_replica_that_left_is_forgotten() -> None:
    async def run() -> None:
        router = await made("a", "b", free=1000)
        home = await routed(router, asked(0, "key"))
        router.update_replicas([Stand(name) for name in "ab" if name != home])
        assert await routed(router, asked(1, "key")) != home
        assert router._policy.warmth.places("key") == {"ab".replace(home, "")}

    asyncio.run(run())


@pytest.mark.parametrize("policy", ["random", "least_loaded"])
def test_other_policies_serve_for_comparison(policy: str) -> None:
    async def run() -> None:
        router = await made("a", "b", policy=policy)
        for replica in "ab":
            router.on_new_queue_len_info(ReplicaID(unique_id=replica, deployment_id=DEPLOYMENT), 0)
        assert {await routed(router, asked(number, None)) for number in range(60)} == {"a", "b"}, (
            "of so many one may count on both"
        )

    asyncio.run(run())
