"""What an API process's requests use, on its way to the registry: counted as they run, told every few seconds."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import date, timedelta

from softmux.errors import RegistryDown
from softmux.registry.usage import OTHER_TASKS, UsageKey, UsageStore, Used, today
from softmux.telemetry.exposition import BARE, Metrics
from softmux.worker.messages import Spent

log = logging.getLogger(__name__)

_MOST_KEPT = 50_000
"""Tasks kept apart while the registry is away."""
_BATCH = 500


class Meter:
    """One running request's. `progress` says what it has used so far; `end` reads it for the last time."""

    __slots__ = ("_booked", "_ledger", "_progress", "_task", "_tenant")

    def __init__(self, ledger: Ledger, tenant: str, task: str, progress: Callable[[], Used]) -> None:
        self._ledger, self._tenant, self._task, self._progress = ledger, tenant, task, progress
        self._booked = Used()

    def end(self) -> None:
        """The request is over. Call it however it ended, once."""
        self.read()
        self._ledger.ended(self)

    def read(self) -> None:
        """Books what was used since it was read last."""
        used = self._progress()
        if used != self._booked:
            self._ledger.book(self._tenant, self._task, used - self._booked)
            self._booked = used


class Ledger:
    """`run` tells the registry every `seconds`; what it can't be told stays, and goes first the next time.

    So what a process that is killed had not told is that of one interval at most. `days`: how long usage is kept.
    """

    def __init__(
        self,
        store: UsageStore,
        process: str,
        metrics: Metrics,
        *,
        seconds: float,
        days: int,
        clock: Callable[[], date] = today,
        most: int = _MOST_KEPT,
    ) -> None:
        self._store, self._process, self._metrics = store, process, metrics
        self._seconds, self._days, self._clock, self._most = seconds, days, clock, most
        self._running: set[Meter] = set()
        self._kept: dict[UsageKey, Used] = {}
        self._sending: list[tuple[UsageKey, Used]] = []
        """The batch whose booking is not known of."""
        self._number = 0
        self._flushing = asyncio.Lock()
        self._away = False
        self._forgot: date | None = None
        self._told = time.monotonic()

    @property
    def age(self) -> float:
        """Seconds since all was told."""
        return time.monotonic() - self._told

    def begin(self, tenant: str, task: str | None, progress: Callable[[], Used]) -> Meter:
        """Counts a request from now on. `task` None is the bare model."""
        meter = Meter(self, tenant, BARE if task is None else task, progress)
        self._running.add(meter)
        return meter

    def ended(self, meter: Meter) -> None:
        self._running.discard(meter)

    def spent(self, message: Spent) -> None:
        """The engine's time, as the worker tells it."""
        for tenant, task, seconds in message.booked:
            self.book(tenant, task or BARE, Used(gpu_microseconds=round(seconds * 1e6)))

    def book(self, tenant: str, task: str, used: Used) -> None:
        key = UsageKey(self._clock().isoformat(), tenant, task)
        if key not in self._kept and len(self._kept) >= self._most:
            key = UsageKey(key.day, tenant, OTHER_TASKS)
        self._kept[key] = self._kept.get(key, Used()) + used
        self._metrics.tenant_used(
            tenant,
            requests=used.requests,
            prompt=used.prompt_tokens,
            cached=used.cached_tokens,
            completion=used.completion_tokens,
            seconds=used.gpu_microseconds / 1e6,
        )

    async def flush(self) -> None:
        """Tells the registry all there is. Raises `RegistryDown`; what was not told stays."""
        async with self._flushing:
            for meter in self._running:
                meter.read()
            while self._sending or self._kept:
                if not self._sending:
                    self._sending = [(key, self._kept.pop(key)) for key in list(self._kept)[:_BATCH]]
                    self._number += 1
                await self._store.flush(self._process, self._number, self._sending)
                self._sending = []

    async def run(self) -> None:
        """Flushes now and then, for as long as it is not cancelled."""
        while True:
            await asyncio.sleep(self._seconds)
            if await self.try_to_flush():
                await self._forget()

    async def _forget(self) -> None:
        """Once a day, what has been kept long enough."""
        day = self._clock()
        if day == self._forgot:
            return
        try:
            await self._store.forget(day - timedelta(days=self._days))
            self._forgot = day
        except RegistryDown as error:
            log.warning("old usage is deleted once the registry is back: %s", error.message)

    async def try_to_flush(self) -> bool:
        """Whether all is told; what is not is logged once, and counted."""
        try:
            await self.flush()
        except RegistryDown as error:
            if not self._away:
                log.warning("usage is kept in memory until the registry is back: %s", error.message)
            self._away = True
            self._metrics.flushed("unanswered")
            return False
        self._away, self._told = False, time.monotonic()
        self._metrics.flushed("done")
        return True
