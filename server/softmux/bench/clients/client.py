"""One client process: an event loop that sends a load's requests when they are due, and notes what comes when.

aiohttp parses HTTP in C: with 256 connections a core reads six times as many events through it as through httpx, and
fifty times as many whole replies (`softmux bench client` measures this client alone).
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import uvloop

from softmux.bench.clients.events import DONE, EventReader, Reply, read_reply
from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.workload import Job

_IDLE_SECONDS = 4.0
"""A connection idle for longer is not used again: servers commonly close theirs after five seconds."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go, and how they are put: `openai` names the task in `model`, softmux in the query."""

    url: str
    path: str = "/v1/generate"
    openai: bool = False
    model: str = ""
    api_key: str | None = None
    stream: bool = True
    ignore_eos: bool = True
    temperature: float = 0.0
    timeout: float = 600.0

    def body(self, job: Job, task: str | None) -> bytes:
        fields: dict[str, Any] = {
            "prompt": job.ids if job.text is None else job.text,
            "max_tokens": job.new_tokens,
            "temperature": self.temperature,
            "stream": self.stream,
        }
        if self.ignore_eos:
            fields["ignore_eos"] = True
        if self.openai:
            fields["model"] = task or self.model
            if self.stream:
                fields["stream_options"] = {"include_usage": True}
        return msgspec.json.encode(fields)

    def params(self, task: str | None) -> dict[str, str]:
        return {} if self.openai or task is None else {"task": task}


class Client:
    """Keeps its event loop and its open connections from one `run` to the next."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._session = self._runner.run(self._open())

    async def _open(self) -> aiohttp.ClientSession:
        key = self._endpoint.api_key
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        return aiohttp.ClientSession(
            self._endpoint.url,
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_SECONDS),
            timeout=aiohttp.ClientTimeout(total=self._endpoint.timeout),
        )

    def run(self, load: Load, start: float) -> tuple[list[Outcome], float]:
        """Sends every request of the load; `start` is its time zero, on `time.monotonic`'s clock. Returns the outcomes
        in the jobs' order, and the CPU seconds that it took this process."""
        before = time.process_time()
        outcomes = self._runner.run(self._drive(load, start))
        return outcomes, time.process_time() - before

    async def _drive(self, load: Load, start: float) -> list[Outcome]:
        limit = load.arrivals.concurrency
        places = asyncio.Semaphore(limit or max(1, len(load.jobs)))
        running: list[asyncio.Task[Outcome]] = []

        async def one(job: Job, due: float) -> Outcome:
            try:
                return await self._send(job, None if job.task is None else load.tasks[job.task], due, start)
            finally:
                places.release()

        async with asyncio.TaskGroup() as group:
            for job, due in zip(load.jobs, load.arrivals.times.tolist(), strict=True):
                # again where uvloop's timers, which count in milliseconds, ring early
                while (early := start + due - time.monotonic()) > 0:  # noqa: ASYNC110
                    await asyncio.sleep(early)
                await places.acquire()
                running.append(group.create_task(one(job, due)))
        return [task.result() for task in running]

    async def _send(self, job: Job, task: str | None, due: float, start: float) -> Outcome:
        body, params = self._endpoint.body(job, task), self._endpoint.params(task)
        sent = time.monotonic() - start
        try:
            async with self._session.post(self._endpoint.path, params=params, data=body) as reply:
                if reply.status != 200:
                    code = _code(reply.status, await reply.read())
                    return Outcome(due, sent, time.monotonic() - start, error=code)
                if self._endpoint.stream:
                    return await _streamed(reply, due, sent, start)
                whole = read_reply(await reply.read())
                usage = whole.usage
                ended = time.monotonic() - start
                if usage is None:
                    return Outcome(due, sent, ended, error="no_usage")
                return Outcome(due, sent, ended, array("d"), usage.prompt_tokens, usage.completion_tokens)
        except TimeoutError:
            code = "timeout"
        except msgspec.MsgspecError:
            code = "no_json"
        except aiohttp.ClientError as error:
            code = type(error).__name__
        return Outcome(due, sent, time.monotonic() - start, error=code)

    def close(self) -> None:
        self._runner.run(_closed(self._session.close()))
        self._runner.close()


async def _closed(closing: Coroutine[Any, Any, None]) -> None:
    await closing


async def _streamed(reply: aiohttp.ClientResponse, due: float, sent: float, start: float) -> Outcome:
    """Reads events until the stream ends. All that comes in one read has one time. An event counts when there is
    something to read in it, or when it is the only one."""
    reader, events = EventReader(), array("d")
    usage, done, ended = None, False, sent
    async for piece in reply.content.iter_any():
        now = time.monotonic() - start
        for data in reader.feed(piece):
            if data == DONE:
                done = True
                continue
            part = read_reply(data)
            if part.error is not None:
                return Outcome(due, sent, now, events, error=str(part.error.code or part.error.type or "error"))
            usage = part.usage or usage
            if part.choices:
                ended = now
                if _shows(part) or (not events and part.choices[0].finish_reason is not None):
                    events.append(now)
    if not done:
        return Outcome(due, sent, time.monotonic() - start, events, error="stream_cut")
    if usage is None:
        return Outcome(due, sent, ended, events, error="no_usage")
    return Outcome(due, sent, ended, events, usage.prompt_tokens, usage.completion_tokens)


def _shows(part: Reply) -> bool:
    return any(choice.text or choice.token_ids for choice in part.choices)


def _code(status: int, body: bytes) -> str:
    """`429 rate_limited`; the status alone where the body does not say more."""
    try:
        error = read_reply(body).error
    except msgspec.MsgspecError:
        error = None
    said = "" if error is None else str(error.code or error.type or "")
    return str(status) if said in ("", str(status)) else f"{status} {said}"
