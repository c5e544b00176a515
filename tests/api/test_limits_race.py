"""Limits over several processes on one real Redis: however they race, no window of the limit's length has more."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec
import pytest
import redis

from softmux.api.limits import Limiter
from softmux.errors import RateLimited
from softmux.registry.budgets import Budgets
from softmux.registry.registry import Registry
from softmux.registry.tenants import Limits
from softmux.telemetry.exposition import Metrics
from support import limit_hammer
from support.limit_hammer import Orders
from support.waiting import wait_for

WINDOW = 2.0
ALIVE = 4.0
HELD = "softmux:t:acme:limits:in_flight"


@contextmanager
def hammers(registry: Registry, data: Path, count: int, **orders: Any) -> Iterator[list[subprocess.Popen[str]]]:
    """So many processes that spend the limits of the tenant `acme`."""
    started = []
    try:
        for number in range(count):
            process = subprocess.Popen(
                [sys.executable, limit_hammer.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started.append(process)
            assert process.stdin is not None
            one = Orders(registry.url, str(data), f"p{number}", seed=number, window=WINDOW, **orders)
            process.stdin.write(msgspec.json.encode(one).decode() + "\n")
            process.stdin.flush()
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def lines(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, _ = process.communicate(timeout=120)
    return [json.loads(line) for line in out.splitlines()]


def most_within(spent: Sequence[tuple[float, int]], window: float) -> int:
    """The most that was spent in any stretch of so many seconds."""
    spent = sorted(spent)
    sums = [0, *accumulate(amount for _, amount in spent)]
    most, first = 0, 0
    for last, (at, _) in enumerate(spent):
        while spent[first][0] <= at - window:
            first += 1
        most = max(most, sums[last + 1] - sums[first])
    return most


@pytest.mark.parametrize(
    ("limits", "orders"),
    [
        (Limits(requests_per_minute=7), {"clients": 3, "most_tokens": 10, "pauses": 0.01, "holds": 0.01}),
        (
            Limits(requests_per_minute=400, tokens_per_minute=9000),
            {"clients": 16, "most_tokens": 50, "pauses": 0.001, "holds": 0.002},
        ),
    ],
    ids=["few", "many"],
)
def test_no_window_has_more_than_the_limit(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path, limits: Limits, orders: dict[str, Any]
) -> None:
    runner.run(registry.tenants.create("acme", limits=limits, actor="t"))
    with hammers(registry, tmp_path, 3, seconds=5.0, **orders) as processes:
        found = [line for process in processes for line in lines(process)]
    admitted = [line for line in found if "at" in line]
    assert all(line["refused"] > 0 for line in found if "refused" in line), "the limit was never met"
    for limit, amounts in (
        (limits.requests_per_minute, [(line["at"], 1) for line in admitted]),
        (limits.tokens_per_minute, [(line["at"], line["used"]) for line in admitted]),
    ):
        if limit is not None:
            assert most_within(amounts, WINDOW) <= limit
    # and what may be spent is: a slot counts a second longer than the window, so at worst two thirds of the limit
    requests = most_within([(line["at"], 1) for line in admitted], WINDOW + 1.2)
    tokens = most_within([(line["at"], line["used"]) for line in admitted], WINDOW + 1.2)
    assert requests > (limits.requests_per_minute or 0) * 0.8 or tokens > (limits.tokens_per_minute or 0) * 0.4


def test_tokens_in_flight_never_exceed_their_limit(registry: Registry, runner: asyncio.Runner, tmp_path: Path) -> None:
    runner.run(registry.tenants.create("acme", limits=Limits(tokens_in_flight=300), actor="t"))
    with hammers(registry, tmp_path, 3, seconds=3.0, clients=8, most_tokens=60, pauses=0.002, holds=0.05) as processes:
        found = [line for process in processes for line in lines(process)]
    events = []
    for line in (line for line in found if "at" in line):
        events += [(line["at"], line["tokens"]), (line["ended"], -line["tokens"])]
    running = list(accumulate(amount for _, amount in sorted(events)))
    assert 150 < max(running) <= 300


def test_what_a_killed_process_held_is_the_others_after_its_time(
    registry: Registry, runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", limits=Limits(tokens_in_flight=100), actor="t")
        orders = {"seconds": 60.0, "clients": 1, "pauses": 0.0, "most_tokens": 1, "holds": 60.0, "alive": ALIVE}
        with hammers(registry, tmp_path, 1, **orders) as [doomed], redis.Redis.from_url(registry.url) as client:
            await asyncio.to_thread(wait_for, lambda: bool(client.hvals(HELD)), 60, "it holds a token")
            doomed.kill()
            doomed.wait()
        died = time.monotonic()
        limiter = Limiter(registry.tenants, Budgets(registry.url, "heir", answer=5, alive=ALIVE), Metrics(lambda: None))
        with pytest.raises(RateLimited, match="tokens_in_flight"):
            await limiter.admit("acme", 100)
        (await limiter.admit("acme", 99)).settle(0)
        async with asyncio.timeout(30):
            while True:
                with suppress(RateLimited):
                    await limiter.admit("acme", 100)
                    break
                await asyncio.sleep(0.05)
        assert time.monotonic() - died < ALIVE + 25
        await limiter.close()

    runner.run(story())
