"""One process's limiter over a real Redis."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import redis

from registry.registry_fixtures import pid_if_up, server_pid
from softmux.api.limits import FREE, Charge, Limiter, duration
from softmux.errors import QuotaExceeded, RateLimited
from softmux.registry.budgets import Budgets
from softmux.registry.registry import Registry
from softmux.telemetry.exposition import Metrics
from support.waiting import wait_for


@asynccontextmanager
async def limiter_of(
    registry: Registry, name: str = "p", *, window: float = 2.0, least: int = 1, answer: float = 5.0
) -> AsyncIterator[Limiter]:
    limiter = Limiter(
        registry.tenants,
        Budgets(registry.url, name, window=window, answer=answer),
        Metrics(lambda: None),
        least=least,
    )
    running = asyncio.create_task(limiter.run())
    try:
        yield limiter
    finally:
        running.cancel()
        await limiter.close()


async def limited(registry: Registry, **limits: int | None) -> None:
    await registry.tenants.create("acme", actor="t")
    await registry.tenants.set("acme", limits=limits, actor="t")


def test_without_a_limit_there_is_no_header_and_no_call(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, stored_bytes=1)
        async with limiter_of(registry) as limiter:
            charge = await limiter.admit("acme", 1_000_000)
            assert charge is FREE
            assert not charge.headers
            charge.settle(5)
            await asyncio.sleep(1.1)
        with redis.Redis.from_url(registry.url) as client:
            assert not client.exists("softmux:processes")

    runner.run(story())


def test_headers_count_down_and_a_client_that_waits_is_served(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, requests_per_minute=3, tokens_per_minute=100)
        async with limiter_of(registry) as limiter:
            seen = []
            for _ in range(3):
                charge = await limiter.admit("acme", 20)
                seen.append(charge.headers)
                charge.settle(20)
            assert [one["x-ratelimit-remaining-requests"] for one in seen] == ["2", "1", "0"]
            assert [one["x-ratelimit-remaining-tokens"] for one in seen] == ["80", "60", "40"]
            assert {one["x-ratelimit-limit-requests"] for one in seen} == {"3"}
            assert {one["x-ratelimit-limit-tokens"] for one in seen} == {"100"}
            for _ in range(2):
                with pytest.raises(RateLimited, match="requests_per_minute of 3 is reached") as refused:
                    await limiter.admit("acme", 20)
                assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
                assert refused.value.headers["x-ratelimit-reset-requests"].endswith("s")
            assert refused.value.retry_after is not None
            assert 0 < refused.value.retry_after <= 3.0
            await asyncio.sleep(refused.value.retry_after)
            (await limiter.admit("acme", 20)).settle(20)

    runner.run(story())


def test_what_a_request_did_not_use_is_given_back(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, tokens_per_minute=100)
        async with limiter_of(registry, window=60) as limiter:
            for used in (10, 20, 0):
                (await limiter.admit("acme", 70)).settle(used)
            charge = await limiter.admit("acme", 70)
            assert charge.headers["x-ratelimit-remaining-tokens"] == "0"
            with pytest.raises(RateLimited, match="tokens_per_minute"):
                await limiter.admit("acme", 1)
            charge.settle(60)
            assert (await limiter.admit("acme", 10)).headers["x-ratelimit-remaining-tokens"] == "0"

    runner.run(story())


def test_a_request_beyond_the_limit_itself_is_told_so(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, tokens_per_minute=100, tokens_in_flight=50)
        async with limiter_of(registry) as limiter:
            with pytest.raises(QuotaExceeded, match=r"tokens_per_minute of 100: .*lower max_tokens") as refused:
                await limiter.admit("acme", 101)
            assert refused.value.headers["x-ratelimit-remaining-tokens"] == "100"
            assert refused.value.headers["x-ratelimit-reset-tokens"] == "0ms"
            with pytest.raises(QuotaExceeded, match="tokens_in_flight of 50"):
                await limiter.admit("acme", 51)
            (await limiter.admit("acme", 50)).settle(50)
        await registry.tenants.set("acme", limits={"requests_per_minute": 0, "tokens_per_minute": None}, actor="t")
        async with limiter_of(registry) as limiter:
            with pytest.raises(QuotaExceeded, match="is 0"):
                await limiter.admit("acme", 1)

    runner.run(story())


def test_tokens_in_flight_are_free_again_when_requests_end(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, tokens_in_flight=100)
        async with limiter_of(registry, "a") as one, limiter_of(registry, "b") as other:
            first = await one.admit("acme", 60)
            assert not first.headers
            with pytest.raises(RateLimited, match="tokens_in_flight"):
                await other.admit("acme", 41)
            second = await other.admit("acme", 40)
            first.settle(1)
            await eventually(lambda: other.admit("acme", 60))
            second.settle(0)

    runner.run(story())


async def eventually(ask: Callable[[], Awaitable[Charge]], seconds: float = 20) -> Charge:
    """The charge, once there is room for it."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                return await ask()
            except RateLimited:
                await asyncio.sleep(0.05)


def test_other_limits_count_at_once(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, requests_per_minute=100)
        async with limiter_of(registry, window=60) as limiter:
            for _ in range(20):
                (await limiter.admit("acme", 1)).settle(1)
            await registry.tenants.set("acme", limits={"requests_per_minute": 10}, actor="t")
            with pytest.raises(RateLimited, match="of 10 is reached") as refused:
                await limiter.admit("acme", 1)
            assert refused.value.headers["x-ratelimit-remaining-requests"] == "0"
            await registry.tenants.set("acme", limits={"requests_per_minute": 21}, actor="t")
            assert (await limiter.admit("acme", 1)).headers["x-ratelimit-remaining-requests"] == "0"
            with pytest.raises(RateLimited):
                await limiter.admit("acme", 1)
            await registry.tenants.set("acme", limits={"requests_per_minute": None}, actor="t")
            assert await limiter.admit("acme", 1) is FREE

    runner.run(story())


def test_a_burst_is_a_few_exchanges_not_one_for_each_request(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, requests_per_minute=10_000, tokens_per_minute=1_000_000)
        metrics = Metrics(lambda: None)
        limiter = Limiter(registry.tenants, Budgets(registry.url, "p", window=60, answer=5), metrics)
        for _ in range(10):
            charges = await asyncio.gather(*(limiter.admit("acme", 10) for _ in range(100)))
            for charge in charges:
                charge.settle(10)
        draws = {s.labels: s.value for s in metrics.counts() if s.name == "softmux_limit_draws_total"}
        assert 0 < draws[(("outcome", "granted"),)] < 100
        await limiter.close()
        assert drawn(registry) == 1000  # what was drawn ahead is back
        assert drawn(registry, "tokens") == 10_000

    runner.run(story())


def test_with_redis_away_each_process_goes_on_with_its_share(registry: Registry, runner: asyncio.Runner) -> None:
    async def until_refused(limiter: Limiter, left: int) -> int:
        for served in range(11):
            began = asyncio.get_running_loop().time()
            charge: Charge | None = None
            with suppress(RateLimited):
                charge = await limiter.admit("acme", 10)
            assert asyncio.get_running_loop().time() - began < 5
            if charge is None:
                return served
            assert charge.headers["x-ratelimit-remaining-requests"] == str(left - served - 1)
            charge.settle(10)
        raise AssertionError("never refused")

    async def story() -> None:
        await limited(registry, requests_per_minute=11, tokens_per_minute=10_000, tokens_in_flight=1000)
        pid = server_pid(registry.url)
        async with (
            limiter_of(registry, "a", window=60, least=2, answer=0.25) as one,
            limiter_of(registry, "b", window=60, least=2, answer=0.25) as other,
        ):
            for limiter in (one, other):
                (await eventually(lambda limiter=limiter: limiter.admit("acme", 10))).settle(10)
            os.kill(pid, signal.SIGSTOP)
            try:
                assert await until_refused(one, 5) == 5  # of an odd limit the first process has one more
                assert await until_refused(other, 4) == 4
                with pytest.raises(RateLimited, match="share of it, 5,") as refused:
                    await other.admit("acme", 10)
                assert refused.value.retry_after is not None
                assert 50 < refused.value.retry_after <= 61
            finally:
                os.kill(pid, signal.SIGCONT)
            await until(lambda: drawn(registry) >= 11, "Redis hears of what was spent meanwhile")
            with pytest.raises(RateLimited, match="of 11 is reached:"):
                await until_counted(other)

    async def until_counted(limiter: Limiter) -> None:
        async with asyncio.timeout(20):
            while True:
                try:
                    await limiter.admit("acme", 10)
                except RateLimited as error:
                    if "out of reach" not in error.message:
                        raise
                await asyncio.sleep(0.1)

    runner.run(story())


def test_a_redis_that_is_started_again_goes_on_counting(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await limited(registry, requests_per_minute=10)
        async with limiter_of(registry, window=60, answer=0.25) as limiter:
            for _ in range(6):
                (await eventually(lambda: limiter.admit("acme", 1))).settle(1)
            pid = server_pid(registry.url)
            os.kill(pid, signal.SIGKILL)
            served = 6
            for attempt in range(60):
                with suppress(RateLimited):
                    (await limiter.admit("acme", 1)).settle(1)
                    served += 1
                if attempt == 30:
                    await until(lambda: pid_if_up(registry.url) not in (None, pid), "another Redis answers")
            assert served == 10
            await until(lambda: drawn(registry) >= 10, "Redis knows of all")

    runner.run(story())


def drawn(registry: Registry, kind: str = "requests") -> int:
    """What Redis counts as spent."""
    with redis.Redis.from_url(registry.url, socket_timeout=5) as client:
        try:
            return sum(int(amount) for amount in client.hvals(f"softmux:t:acme:limits:{kind}"))
        except redis.RedisError:
            return -1


async def until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_for, condition, 30, what)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0ms"), (0.0123, "12ms"), (1, "1s"), (59.95, "59.95s"), (60.5, "1m0.5s"), (360, "6m0s")]
)
def test_durations_are_written_as_openai_does(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
