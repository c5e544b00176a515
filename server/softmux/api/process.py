"""`python -m softmux.api.process`, its `ApiConfig` on standard input: one of the processes that answer HTTP.

Started by the server (`softmux.api.processes`), never by hand. It has its own registry views, tokenizer and connection
to the worker; what all processes must agree on the server tells it as `State`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import Coroutine
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from softmux.api.app import create_app
from softmux.api.backlog import Backlog
from softmux.api.control import (
    Answer,
    ApiConfig,
    Changed,
    Count,
    Counted,
    End,
    Idle,
    Leaving,
    Line,
    Reached,
    Ready,
    State,
)
from softmux.api.http import HttpServer
from softmux.api.limits import Limiter
from softmux.api.loop import run_on_loop
from softmux.api.networks import is_loopback
from softmux.api.observe import InFlight
from softmux.api.services import Services
from softmux.api.siblings import Siblings
from softmux.api.standing import Standing
from softmux.api.tokenizer import Tokenizer
from softmux.api.usage import Ledger
from softmux.errors import EngineDown, RegistryDown
from softmux.registry.budgets import Budgets
from softmux.registry.registry import Registry
from softmux.registry.tenants import TenantRecord
from softmux.settings import Settings
from softmux.telemetry.exposition import Metrics, TenantShare
from softmux.telemetry.logs import configure
from softmux.telemetry.tracing import Tracer
from softmux.worker.replicas import Replicas

log = logging.getLogger(__name__)

_LEAST_FREE = 8
"""A replica has room for so many sequences of this process, and for half a batch shared with the others."""


class ApiProcess:
    """`run` returns when the server said `End`, or when the process left because of a signal."""

    def __init__(self, config: ApiConfig, settings: Settings, registry: Registry, line: Line) -> None:
        self._config, self._registry, self._line = config, registry, line
        self._drain_seconds = settings.drain_seconds
        rows = settings.max_rows // (2 * config.processes)
        self._worker = Replicas.of(
            len(config.endpoints), lambda message: self._usage.spent(message), free=max(_LEAST_FREE, rows)
        )
        self._state = State()
        self._in_flight = InFlight()
        self._metrics = Metrics(
            lambda: self._worker.stats,
            restarts=lambda: self._state.restarts,
            deaths=lambda: self._state.deaths,
            quarantined=lambda: self._state.verdicts.counts(),
            up=lambda: (self._worker.up, self._worker.count),
            registry=lambda: (registry.away is None, len(registry.catalog)),
            tenants=lambda: [_share(record) for record in registry.tenants.shared_out()],
        )
        name = secrets.token_hex(8)
        budgets = Budgets(config.registry_url, name, answer=settings.limits_answer_seconds)
        self._limits = Limiter(registry.tenants, budgets, self._metrics, least=settings.api_processes or 1)
        self._usage = Ledger(
            registry.usage, name, self._metrics, seconds=settings.usage_flush_seconds, days=settings.usage_days
        )
        siblings = Siblings(line)
        self._services = Services(
            settings,
            self._worker,
            registry,
            self._metrics,
            siblings,
            self._limits,
            self._usage,
            Standing(siblings, self._metrics),
            Backlog(settings, self._worker, self._metrics, config.processes),
        )
        endpoint = settings.otlp_traces_endpoint
        self._tracer = Tracer.to(endpoint) if endpoint else None
        app = create_app(self._services, self._in_flight, self._tracer)
        self._http = HttpServer(app, socket.socket(fileno=config.connections))
        self._said_ready = False
        self._connecting = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._leave)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        going = [self._task(work) for work in (self._hear(), self._limits.run(), self._usage.run())]
        try:
            await self._http.answer()
        finally:
            await self._services.grammars.close()
            await self._worker.refresh_stats()  # and how the engine's time was spent
            for task in going:
                task.cancel()
            await self._limits.close()
            if not await self._usage.try_to_flush():
                log.error("what was used since %.0f s ago could not be told the registry, and is lost", self._usage.age)
            self._line.send(Counted(self._metrics.counts()))
            self._worker.close()
            if self._tracer is not None:
                await asyncio.to_thread(self._tracer.close)

    async def _hear(self) -> None:
        while (message := await self._line.hear()) is not None:
            match message:
                case State():
                    self._agree(message)
                case Count():
                    self._line.send(Answer(message.id, self._metrics.counts()))
                case Changed():
                    self._task(self._see(message))
                case End():
                    self._end()
        os._exit(1)  # the server is gone, and nobody would end this process any more

    # --- what the server tells ---------------------------------------------------------------------------------------

    def _agree(self, state: State) -> None:
        before, self._state = self._state, state
        services = self._services
        services.started, services.everywhere = state.started, state.everywhere
        services.standing.hear(state.verdicts, state.fell, died=state.deaths != before.deaths)
        for number, (was, now) in enumerate(zip_longest(before.workers, state.workers, fillvalue=-1)):
            if was >= 0 and now != was:
                self._worker.lost(number, state.verdicts)
            if now >= 0 and now != was:
                self._connecting += 1
                self._task(self._connect(number, now))
        self._worker.take_over(state.gone)
        if state.tokenizer and not before.tokenizer:
            self._task(self._load_tokenizer())
        if state.draining and not before.draining:
            services.draining = True
            self._task(self._drain())

    async def _connect(self, number: int, restarts: int) -> None:
        try:
            await self._worker.connect(number, self._config.endpoints[number])
        except EngineDown:
            return  # it died again: the server will say when there is another
        finally:
            self._connecting -= 1
        self._line.send(Reached(number, restarts))
        self._say_ready()

    async def _load_tokenizer(self) -> None:
        data = await asyncio.to_thread(Path(self._config.tokenizer).read_bytes)
        self._services.tokenizer = await asyncio.to_thread(Tokenizer.exported, data)
        self._say_ready()

    def _say_ready(self) -> None:
        if not self._said_ready and self._services.tokenizer is not None and not self._connecting:
            self._said_ready = True
            gc.collect()
            gc.freeze()  # the application lives as long as the process: no collection need walk it under load
            self._line.send(Ready())

    async def _see(self, change: Changed) -> None:
        with contextlib.suppress(RegistryDown):  # its follower will see it once the registry is back
            if change.task is None:
                for view in (self._registry.tenants, self._registry.keys):
                    await view.reload()
            else:
                await self._registry.catalog.refresh(change.tenant, change.task)
        self._line.send(Answer(change.id))

    # --- the end -----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        self._http.ask_to_close()
        await self._in_flight.none()
        self._line.send(Idle())

    def _end(self) -> None:
        if self._in_flight.count:
            log.warning("ended with %d requests running", self._in_flight.count)
            self._http.force_exit = True
        self._http.should_exit = True

    def _leave(self) -> None:
        """On SIGTERM to this process alone: others take its place, and it ends when its clients have their answers."""
        self._line.send(Leaving())
        self._task(self._left())

    async def _left(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._http.finished(), self._drain_seconds)
        self._end()

    def _task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        """A part that fails ends the process: the server starts another."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an API process ends of an error", exc_info=error)
            os._exit(1)


def _share(record: TenantRecord) -> TenantShare:
    limits = {name: limit for name, limit in msgspec.structs.asdict(record.limits).items() if limit is not None}
    return TenantShare(record.name, record.weight, limits)


async def _run(config: ApiConfig, settings: Settings) -> None:
    line = await Line.over(socket.socket(fileno=config.control))
    registry = await Registry.open(config.registry_url, settings.data, config.blob_url, begin=False)
    try:
        await registry.follow(collect=False)
        if not registry.keys.has_keys() and not is_loopback(settings.host):
            raise RegistryDown("the registry has lost its keys: make one (`softmux key create`), or restore a backup")
        await ApiProcess(config, settings, registry, line).run()
    finally:
        await registry.close()
        line.close()


def main() -> int:
    config = msgspec.json.decode(sys.stdin.buffer.readline(), type=ApiConfig)
    settings = Settings(**config.settings)
    configure(settings.log_level, log_prompts=settings.log_prompts, form=settings.log_format)
    try:
        run_on_loop(_run(config, settings))
    except RegistryDown as error:
        log.error("an API process can't start: %s", error.message)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
