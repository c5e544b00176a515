"""Rows answered by a running server: many at a time, patient where it is busy or away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from softmux.client import AsyncClient, NoAnswer, Retry
from softmux.client.calls import WORKS, Call
from softmux.errors import InvalidRequest, NotFound, SoftmuxError
from softmux.offline.interrupt import Interrupt
from softmux.offline.rows import OPENAI, Answer, Row
from softmux.offline.target import Identity

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0
_MAY_BE_ITS_DOING = ("engine_down", "internal")
"""After these a row is asked again a few times only: it may be what fells the engine."""
_TRIES = 4


class GaveUp(SoftmuxError):
    """Nothing has come of any row for too long. What is written stays, and what is not is still to do."""

    status, code = 503, "gave_up"


class ServedTarget:
    """A task, or with None the bare model, of the server at `url`. `patience`: seconds without any answer to a row
    after which the work is given up. Answers are the version's that is active now, or `digest`'s, until the end."""

    def __init__(
        self, url: str | None, key: str | None, task: str | None, *, concurrency: int, patience: float,
        digest: str | None = None,
    ) -> None:  # fmt: skip
        self._runner = asyncio.Runner()
        self._client = AsyncClient(url, key=key, retry=Retry(attempts=1))
        self._concurrency = concurrency
        self._patience = patience
        self._progress = time.monotonic()
        try:
            self.identity = self._runner.run(self._identify(task, digest))
        except BaseException:
            self.close()
            raise

    async def _identify(self, task: str | None, digest: str | None) -> Identity:
        model = await self._client.model()
        self._model = model.id
        if task is None:
            return Identity(model.base_fingerprint, None, None)
        if "," in task:
            raise InvalidRequest("softmux run takes one task; name combined ones in a row's own body.", param="task")
        name, _, number = task.partition("@")
        if number and not number.isdigit():
            raise InvalidRequest(f"{task}: a version is a number, as {name}@2.", param="task")
        versions = await self._client.adapters.versions(name)
        for version in versions:
            if version.digest == digest or (digest is None and _is_meant(version, number)):
                return Identity(model.base_fingerprint, f"{name}@{version.version}", version.digest)
        what = f"the version that began this ({digest})" if digest else f"version {number or '(active)'}"
        raise NotFound(f"{name} has not {what}; `softmux show {name}` lists what there is.", param="task")

    def answers(self, rows: Iterator[Row], interrupt: Interrupt) -> Iterator[Answer]:
        running: set[asyncio.Task[Answer]] = set()
        loop = self._runner.get_loop()
        interrupted: asyncio.Future[None] = loop.create_future()
        interrupt.wake = lambda: loop.call_soon_threadsafe(interrupted.set_result, None)
        self._progress = time.monotonic()
        try:
            while True:
                interrupt.check()
                while len(running) < self._concurrency and (row := next(rows, None)) is not None:
                    running.add(loop.create_task(self._answer(row)))
                if not running:
                    return
                done, running = self._runner.run(_first_of(running, interrupted))
                for task in done:
                    yield task.result()
        finally:
            for task in running:
                task.cancel()

    async def _answer(self, row: Row) -> Answer:
        """Raises `GaveUp`, and `Unauthorized` and `Forbidden`, which are the same for all rows."""
        call, tries, attempt = self._call(row), 0, 0
        while True:
            try:
                reply = (await self._client.send(call)).json()
                self._progress = time.monotonic()
                return Answer(row, reply)
            except SoftmuxError as error:
                tries += error.code in _MAY_BE_ITS_DOING
                if error.status in (401, 403):
                    raise
                passes = isinstance(error, NoAnswer) or error.code in WORKS
                if not passes and not (error.code in _MAY_BE_ITS_DOING and tries < _TRIES):
                    self._progress = time.monotonic()
                    return Answer(row, error=error, status=getattr(error, "answered", 0) or error.status)
                if time.monotonic() - self._progress > self._patience:
                    raise GaveUp(
                        f"No row was answered for {self._patience:g} s ({error.message}). Run the same command again: "
                        "it goes on where this ended."
                    ) from None
                backoff = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0**attempt)
                attempt += 1
                wait = max(backoff, min(_LONGEST_WAIT, error.retry_after or 0.0))
                await asyncio.sleep(wait * (0.75 + 0.5 * (hash((row.number, attempt)) % 1000) / 1000))

    def _call(self, row: Row) -> Call:
        body: dict[str, Any] = row.body
        if row.url in OPENAI:
            body = {**body, "model": self.identity.task or body.get("model") or self._model}
            return Call("POST", row.url, json=body)
        params = {"task": self.identity.task} if self.identity.task else None
        return Call("POST", row.url, params, body)

    def close(self) -> None:
        # An interrupt may have left the last run's end in the loop, where it would end the next one before its time.
        loop = self._runner.get_loop()
        loop.call_soon(loop.stop)
        loop.run_forever()
        self._runner.run(self._client.aclose())
        self._runner.close()


def _is_meant(version: Any, number: str) -> bool:
    return bool(version.active) if not number else version.version == int(number)


async def _first_of(
    running: set[asyncio.Task[Answer]], interrupted: asyncio.Future[None]
) -> tuple[set[asyncio.Task[Answer]], set[asyncio.Task[Answer]]]:
    """Those that have ended, one at least unless there is an interrupt, and the others."""
    waited_for: set[asyncio.Future[Any]] = {*running, interrupted}
    await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
    done = {task for task in running if task.done()}
    return done, running - done
