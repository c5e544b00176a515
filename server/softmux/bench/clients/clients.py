"""Several client processes as one target: each sends every n-th request, on one clock."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection

from softmux.bench.clients.client import Client, Endpoint
from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome

_LEAD_SECONDS = 0.5
"""Between handing a load to the processes and its time zero; sending it to them takes less."""


class HttpTarget:
    """An endpoint, asked by `processes` clients; with one, the client runs in this process."""

    def __init__(self, name: str, endpoint: Endpoint, processes: int = 1) -> None:
        self.name = name
        self._own = Client(endpoint) if processes == 1 else None
        self._others = [_Process(endpoint) for _ in range(processes)] if processes > 1 else []

    def run(self, load: Load) -> tuple[list[Outcome], float]:
        if self._own is not None:
            outcomes, busy = self._own.run(load, time.monotonic())
            return outcomes, busy / _duration(outcomes)
        parts = len(self._others)
        start = time.monotonic() + _LEAD_SECONDS
        for part, process in enumerate(self._others):
            process.begin(load.share(part, parts), start)
        found = [process.end() for process in self._others]
        merged = [found[number % parts][0][number // parts] for number in range(len(load.jobs))]
        return merged, max(busy for _, busy in found) / _duration(merged)

    def close(self) -> None:
        if self._own is not None:
            self._own.close()
        for process in self._others:
            process.close()


def _duration(outcomes: list[Outcome]) -> float:
    return max((outcome.ended for outcome in outcomes), default=0.0) or 1e-9


class _Process:
    """A `Client` in a process of its own, spoken to through a pipe: `(load, start)` → `(outcomes, CPU seconds)`."""

    def __init__(self, endpoint: Endpoint) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, endpoint), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()  # it has imported what it needs, and is ready

    def begin(self, load: Load, start: float) -> None:
        self._pipe.send((load, start))

    def end(self) -> tuple[list[Outcome], float]:
        found: tuple[list[Outcome], float] = self._pipe.recv()
        return found

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(10)


def _serve(pipe: Connection, endpoint: Endpoint) -> None:
    client = Client(endpoint)
    pipe.send("ready")
    while (asked := pipe.recv()) is not None:
        pipe.send(client.run(*asked))
    client.close()
