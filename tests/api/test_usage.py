"""What an API process counts, on its way to a real registry."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from datetime import date, timedelta

import redis

from registry.registry_fixtures import server_pid
from softmux.api.usage import Ledger
from softmux.errors import RegistryDown
from softmux.registry.connection import Connection
from softmux.registry.keyspace import ID
from softmux.registry.registry import Registry
from softmux.registry.usage import OTHER_TASKS, UsageKey, UsageStore, Used
from softmux.telemetry.exposition import Metrics
from softmux.worker.messages import Spent

DAY = date(2026, 3, 1)


class LosesReplies(UsageStore):
    """Books, and says it could not, as when the connection ends before the reply."""

    def __init__(self, store: UsageStore, losses: int) -> None:
        self._store, self.losses = store, losses
        self.calls = 0

    async def flush(self, process: str, number: int, batch: Sequence[tuple[UsageKey, Used]]) -> bool:
        booked = await self._store.flush(process, number, batch)
        self.calls += 1
        if self.losses:
            self.losses -= 1
            raise RegistryDown("the reply was lost")
        return booked


def ledger_of(store: UsageStore, name: str = "p", **options: int) -> Ledger:
    return Ledger(store, name, Metrics(lambda: None), seconds=1, days=30, clock=lambda: DAY, **options)


async def totals(registry: Registry, tenant: str = "acme") -> dict[str, Used]:
    return {key.task: used for key, used in await registry.usage.read([tenant], DAY, DAY)}


def test_a_batch_whose_reply_was_lost_counts_once(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        store = LosesReplies(registry.usage, losses=3)
        ledger = ledger_of(store)
        for number in range(4):
            ledger.book("acme", "mood", Used(1, 10, 5))
            assert await ledger.try_to_flush() == (number == 3)
        assert store.calls == 5  # the first batch four times, then all that came meanwhile
        assert await totals(registry) == {"mood": Used(4, 40, 20)}

    runner.run(story())


def test_processes_add_up_by_day_tenant_and_task(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        for name in ("p", "q"):
            ledger = ledger_of(registry.usage, name)
            for tenant in ("acme", "other"):
                for task in ("mood", "owner/mood", "(base)"):
                    ledger.book(tenant, task, Used(1, 2, 3, 4, 5, 6))
            await ledger.flush()
            await ledger.flush()  # nothing to tell
        twice = Used(2, 4, 6, 8, 10, 12)
        assert await totals(registry) == {"mood": twice, "owner/mood": twice, "(base)": twice}
        assert len(await totals(registry, "other")) == 3
        assert not await registry.usage.read(["acme"], DAY + timedelta(days=1), DAY + timedelta(days=50))

    runner.run(story())


def test_a_days_usage_is_kept_as_long_as_asked(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", actor="t")
        days = [DAY - timedelta(days=ago) for ago in (0, 29, 30, 31, 400)]
        for number, day in enumerate(days):
            used = Used(requests=number + 1)
            await registry.usage.flush("old", number, [(UsageKey(day.isoformat(), "acme", "mood"), used)])
        with redis.Redis.from_url(registry.url) as client:  # a backup leaves out what expires by itself
            assert client.ttl(f"softmux:t:acme:usage:{DAY.isoformat()}") == -1
        ledger = Ledger(registry.usage, "p", Metrics(lambda: None), seconds=0.05, days=30, clock=lambda: DAY)
        running = asyncio.create_task(ledger.run())

        async def kept() -> list[str]:
            return [key.day for key, _ in await registry.usage.read(["acme"], days[-1], DAY)]

        for _ in range(200):
            if len(await kept()) < len(days):
                break
            await asyncio.sleep(0.05)
        assert await kept() == [day.isoformat() for day in reversed(days[:3])]
        running.cancel()

    runner.run(story())


def test_what_a_deleted_tenant_used_is_deleted_in_time_too(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        await registry.tenants.create("acme", actor="t")
        await registry.usage.flush("p", 1, [(UsageKey(DAY.isoformat(), "acme", "mood"), Used(1))])
        await registry.delete_tenant("acme", actor="t")
        assert "acme" in await registry.usage.tenants()
        assert await registry.usage.forget(DAY) == 0
        assert await totals(registry) == {"mood": Used(1)}
        assert await registry.usage.forget(DAY + timedelta(days=1)) == 1
        assert await totals(registry) == {}

    runner.run(story())


def test_nothing_is_booked_where_the_registry_is_missing(registry: Registry, runner: asyncio.Runner) -> None:
    """As by a process that has yet to notice. What was used is told once the registry is put back."""

    async def story() -> None:
        unaware = Connection(registry.url)
        ledger = ledger_of(UsageStore(unaware))
        with redis.Redis.from_url(registry.url) as client:
            id_ = client.get(ID)
            client.flushall()
            ledger.book("acme", "mood", Used(1, 10, 5))
            assert not await ledger.try_to_flush()
            assert not client.keys()
            client.set(ID, id_)
        assert await ledger.try_to_flush()
        assert [used for _, used in await UsageStore(unaware).read(["acme"], DAY, DAY)] == [Used(1, 10, 5)]
        await unaware.close()

    runner.run(story())


def test_so_many_tasks_of_a_tenant_and_day_are_told_apart(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        store = UsageStore(registry.usage._connection, most_tasks=3)
        for number in range(6):  # as combinations do, of which there are as many as there are orders
            key = UsageKey(DAY.isoformat(), "acme", f"task-{number}")
            await store.flush("p", 2 * number, [(key, Used(1, 2, 3, 4, 5, 6))])
            await store.flush("p", 2 * number + 1, [(UsageKey(key.day, "acme", "task-0"), Used(1))])
        found = await totals(registry)
        assert set(found) == {"task-0", "task-1", "task-2", OTHER_TASKS}
        assert found["task-0"].requests == 7
        assert found[OTHER_TASKS] == Used(3, 6, 9, 12, 15, 18)

    runner.run(story())


def test_what_runs_is_counted_as_it_runs(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        ledger = ledger_of(registry.usage)
        so_far = Used(1, 7, 0)
        meter = ledger.begin("acme", None, lambda: so_far)
        await ledger.flush()
        so_far = Used(1, 7, 50)
        await ledger.flush()
        assert await totals(registry) == {"(base)": Used(1, 7, 50)}
        so_far = Used(1, 7, 48)  # two tokens behind its stop string
        meter.end()
        await ledger.flush()
        assert await totals(registry) == {"(base)": Used(1, 7, 48)}
        ledger.spent(Spent(booked=(("acme", "", 0.25), ("acme", "mood", 0.5))))
        await ledger.flush()
        assert await totals(registry) == {
            "(base)": Used(1, 7, 48, gpu_microseconds=250_000),
            "mood": Used(gpu_microseconds=500_000),
        }

    runner.run(story())


def test_while_the_registry_is_away_usage_is_kept_within_bounds(registry: Registry, runner: asyncio.Runner) -> None:
    async def story() -> None:
        ledger = ledger_of(registry.usage, most=3)
        ledger.book("acme", "first", Used(requests=1))
        pid = server_pid(registry.url)
        os.kill(pid, signal.SIGSTOP)
        try:
            assert not await ledger.try_to_flush()
            for number in range(10):
                ledger.book("acme", f"task-{number}", Used(requests=1))
            ledger.book("acme", "task-0", Used(requests=1))
            assert not await ledger.try_to_flush()
        finally:
            os.kill(pid, signal.SIGCONT)
        for _ in range(100):
            if await ledger.try_to_flush():
                break
            await asyncio.sleep(0.1)
        found = await totals(registry)
        assert found["first"].requests == 1
        assert found["task-0"].requests == 2
        assert found[OTHER_TASKS].requests == 7
        assert sum(used.requests for used in found.values()) == 12

    runner.run(story())
