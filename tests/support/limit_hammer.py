"""A process that spends a tenant's limits as fast as it can: `python limit_hammer.py`, its `Orders` on stdin.

It writes a line of JSON for each request that was admitted (when, by the machine's clock; how many tokens it was
charged, and used; when it ended), then one with how many were refused.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from softmux.api.limits import Limiter
from softmux.errors import RateLimited
from softmux.registry.budgets import Budgets
from softmux.registry.registry import Registry
from softmux.telemetry.exposition import Metrics


class Orders(msgspec.Struct):
    """`pauses`: between two requests of one of `clients`, s at most. `holds`: a request's length, s at most."""

    url: str
    data: str
    process: str
    seed: int
    window: float
    seconds: float
    clients: int
    most_tokens: int
    pauses: float
    holds: float
    answer: float = 5.0
    alive: float = 10.0


async def hammer(orders: Orders) -> None:
    random.seed(orders.seed)
    registry = await Registry.open(orders.url, Path(orders.data))
    await registry.follow(collect=False)
    budgets = Budgets(orders.url, orders.process, window=orders.window, answer=orders.answer, alive=orders.alive)
    limiter = Limiter(registry.tenants, budgets, Metrics(lambda: None))
    running = asyncio.create_task(limiter.run())
    end = time.time() + orders.seconds
    refused = 0

    def say(line: dict[str, Any]) -> None:
        print(json.dumps(line), flush=True)

    async def client() -> None:
        nonlocal refused
        while time.time() < end:
            tokens = random.randint(1, orders.most_tokens)
            try:
                charge = await limiter.admit("acme", tokens)
            except RateLimited:
                refused += 1
                await asyncio.sleep(random.uniform(0.001, 0.01))
                continue
            began = time.time()
            await asyncio.sleep(random.uniform(0, orders.holds))
            used = random.randint(0, tokens)
            say({"at": began, "tokens": tokens, "used": used, "ended": time.time()})
            charge.settle(used)
            await asyncio.sleep(random.uniform(0, orders.pauses))

    await asyncio.gather(*(client() for _ in range(orders.clients)))
    say({"refused": refused})
    running.cancel()
    await limiter.close()
    await registry.close()


if __name__ == "__main__":
    asyncio.run(hammer(msgspec.json.decode(sys.stdin.buffer.readline(), type=Orders)))
