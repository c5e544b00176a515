"""softmux bench endurance: a service's long day in minutes, on a tiny model.

Clients send short requests over many tasks while writers overwrite, roll back, delete and upload again, and what nobody
has any more is collected. Every reply is held against what its digest's weights answered at rest, and its digest
against those that were active between asking and answering. Ends with the memory of each process, what was lost, and
what was left behind; with 1 where anything is wrong.

The soak:            softmux bench endurance --requests 100000
Overwrites:          softmux bench endurance --requests 20000 --tasks 8 --clients 16 --writers 4 --overwrites 1000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from softmux.bench.bases.tiny import METHODS, VOCABULARY, adapter_files, save_tiny
from softmux.bench.peers.service import Server
from softmux.bench.services.memory import slope
from softmux.bench.services.processes import resident_by_kind
from softmux.registry.registry import Registry

_CONTENTS, _PROMPTS = 48, 12
_LARGE = 80_000
"""Bytes by which every other adapter is made longer: it lies in the blob store then, the others in Redis."""
_COLLECT_SECONDS = 5.0
_TRIES = 10
_SAMPLES = 60


@dataclass(slots=True)
class Task:
    """`held` has (digest, could be active from, until) of each version, oldest first; monotonic seconds."""

    name: str
    held: list[list[Any]] = field(default_factory=list)
    gone: list[list[float]] = field(default_factory=list)
    """When there may have been no such task: [from, until]."""
    versions: dict[int, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """One writer at a time: what is active must be known."""

    def may_answer(self, digest: str, sent: float, now: float) -> bool:
        return any(d == digest and since <= now and until >= sent for d, since, until in self.held)

    def may_be_gone(self, sent: float, now: float) -> bool:
        return any(since <= now and until >= sent for since, until in self.gone)


class Endurance:
    def __init__(self, url: str, options: argparse.Namespace) -> None:
        self._url = url
        self._options = options
        self._draw = random.Random(options.seed)  # noqa: S311
        self._prompts = [
            [self._draw.randrange(3, VOCABULARY) for _ in range(self._draw.choice((1, 3, 8)))] for _ in range(_PROMPTS)
        ]
        self._contents: list[dict[str, bytes]] = [
            adapter_files(METHODS[number % 3], self._draw.choice((1, 4, 12)), number, padding=(number % 2) * _LARGE)
            for number in range(_CONTENTS)
        ]
        self._digests: list[str] = []
        self._known: dict[tuple[str, int], list[int]] = {}
        self.tasks = [Task(f"task-{number}") for number in range(options.tasks)]
        weights = 1 / np.arange(1, options.tasks + 1)
        self._shares = (weights / weights.sum()).cumsum().tolist()
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: dict[str, list[tuple[float, float]]] = {}
        self._left = options.requests
        self._done = asyncio.Event()

    async def run(self, server: int, registry: Registry) -> None:
        """All of it, on the server of that process id."""
        limit = aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0)
        async with aiohttp.ClientSession(self._url, connector=limit) as http:
            await self._learn(http)
            await self._publish(http)
            watching = asyncio.create_task(self._watch(server))
            collecting = asyncio.create_task(self._collect(registry))
            writers = [asyncio.create_task(self._write(http)) for _ in range(self._options.writers)]
            await asyncio.gather(*(self._ask_on(http) for _ in range(self._options.clients)))
            await asyncio.gather(*writers)
            self._done.set()
            await asyncio.gather(watching, collecting)
            await self._files_are_there(http)
            for task in self.tasks:
                await self._delete(http, task)
            for _ in range(3):
                await registry.collect(grace=0)

    async def _learn(self, http: aiohttp.ClientSession) -> None:
        """What each content answers at rest, one request at a time."""
        for number, files in enumerate(self._contents):
            version = await self._put(http, f"content-{number}", files)
            self._digests.append(version["digest"])
            for place in range(_PROMPTS):
                _, reply = await self._generate(http, f"content-{number}", place)
                self._known[version["digest"], place] = reply["choices"][0]["token_ids"]
            await self._change(http, "DELETE", f"content-{number}")

    async def _publish(self, http: aiohttp.ClientSession) -> None:
        for number, task in enumerate(self.tasks):
            await self._overwrite(http, task, number % _CONTENTS)

    # --- readers -----------------------------------------------------------------------------------------------------

    async def _ask_on(self, http: aiohttp.ClientSession) -> None:
        while self._left > 0:
            self._left -= 1
            share = self._draw.random()
            number = min(len(self.tasks) - 1, int(np.searchsorted(self._shares, share)))
            await self._ask(http, self.tasks[number], self._draw.randrange(_PROMPTS))

    async def _ask(self, http: aiohttp.ClientSession, task: Task, place: int) -> None:
        sent = time.monotonic()
        status, reply = await self._generate(http, task.name, place)
        now = time.monotonic()
        self.counts["requests"] += 1
        if status == 404 and task.may_be_gone(sent, now):
            self.counts["of a task just deleted: 404"] += 1
            return
        if status != 200:
            self.wrong.append(f"{task.name}: {status} {reply}")
            return
        digest, tokens = reply["adapter"]["digest"], reply["choices"][0]["token_ids"]
        if not task.may_answer(digest, sent, now):
            self.wrong.append(f"{task.name} answered by {digest}, which was not active")
        if tokens != self._known[digest, place]:
            self.wrong.append(f"{task.name}, prompt {place}: {tokens}, and {digest} says {self._known[digest, place]}")
        self.counts["replies held against their digest"] += 1

    async def _generate(self, http: aiohttp.ClientSession, task: str, place: int) -> tuple[int, Any]:
        body = {"prompt": self._prompts[place], "max_tokens": 4, "ignore_eos": True, "return_token_ids": True}
        async with http.post("/v1/generate", params={"task": task}, json=body) as answer:
            return answer.status, await answer.json()

    # --- writers -----------------------------------------------------------------------------------------------------

    async def _write(self, http: aiohttp.ClientSession) -> None:
        """Goes on for as long as readers do, or until so many overwrites were made where that was asked."""
        wanted = self._options.overwrites
        while self._left > 0 if wanted is None else self.counts["overwrites"] < wanted:
            task = self._draw.choice(self.tasks)
            async with task.lock:
                dice = self._draw.random()
                if dice < 0.8:
                    self.counts["overwrites"] += 1
                    await self._overwrite(http, task, self._draw.randrange(_CONTENTS))
                elif dice < 0.9:
                    await self._roll(http, task)
                else:
                    await self._delete(http, task)
                    await self._overwrite(http, task, self._draw.randrange(_CONTENTS))
            if wanted is None:
                await asyncio.sleep(self._options.pause)

    async def _overwrite(self, http: aiohttp.ClientSession, task: Task, number: int) -> None:
        if len(self._digests) > number:
            self._may_follow(task, self._digests[number])
        version = await self._put(http, task.name, self._contents[number])
        task.versions[version["version"]] = version["digest"]
        self._has_followed(task)
        for gap in task.gone:
            gap[1] = min(gap[1], time.monotonic())

    async def _roll(self, http: aiohttp.ClientSession, task: Task) -> None:
        number = self._draw.choice(list(task.versions))
        self._may_follow(task, task.versions[number])
        await self._change(http, "POST", f"{task.name}/activate", json={"version": number})
        self._has_followed(task)
        self.counts["rolled back or forward"] += 1

    async def _delete(self, http: aiohttp.ClientSession, task: Task) -> None:
        task.gone.append([time.monotonic(), math.inf])
        await self._change(http, "DELETE", task.name)
        task.versions.clear()
        for version in task.held:
            version[2] = min(version[2], time.monotonic())
        self.counts["deletions"] += 1

    def _may_follow(self, task: Task, digest: str) -> None:
        task.held.append([digest, time.monotonic(), math.inf])
        del task.held[:-8]

    def _has_followed(self, task: Task) -> None:
        for version in task.held[:-1]:
            version[2] = min(version[2], time.monotonic())

    async def _put(self, http: aiohttp.ClientSession, task: str, files: dict[str, bytes]) -> Any:
        def form() -> aiohttp.FormData:
            made = aiohttp.FormData()
            for name, data in files.items():
                made.add_field(name, data, filename=name)
            return made

        return await self._change(http, "PUT", task, form=form)

    async def _change(
        self, http: aiohttp.ClientSession, method: str, path: str, form: Callable[[], Any] | None = None, **more: Any
    ) -> Any:
        """Sent again where the server asks for it (503), as a careful client does: a change done twice is done once."""
        for _ in range(_TRIES):
            async with http.request(method, f"/v1/adapters/{path}", data=form and form(), **more) as answer:
                if answer.status < 300:
                    return await answer.json() if answer.status != 204 else None
                if answer.status == 404 and method == "DELETE":
                    return None  # the first try did it, and its answer came too late
                said = await answer.text()
                if answer.status != 503:
                    break
                self.counts["changes asked to come again: 503"] += 1
                await asyncio.sleep(float(answer.headers.get("retry-after", 1)))
        raise RuntimeError(f"{method} {path}: {said}")

    # --- what is watched ---------------------------------------------------------------------------------------------

    async def _collect(self, registry: Registry) -> None:
        while not self._done.is_set():
            self.counts["blobs collected"] += await registry.collect(grace=2.0)
            try:
                await asyncio.wait_for(self._done.wait(), _COLLECT_SECONDS)
            except TimeoutError:
                continue

    async def _watch(self, server: int) -> None:
        every = max(1, self._options.requests // _SAMPLES)
        due = 0
        while not self._done.is_set():
            if self.counts["requests"] >= due:
                due += every
                for kind, held in resident_by_kind(server).items():
                    self.memory.setdefault(kind, []).append((self.counts["requests"] / 1000, float(held)))
            await asyncio.sleep(0.05)

    async def _files_are_there(self, http: aiohttp.ClientSession) -> None:
        for task in self.tasks:
            async with http.get(f"/v1/adapters/{task.name}") as answer:
                version = await answer.json()
            expected = self._contents[self._digests.index(version["digest"])]
            for name, data in expected.items():
                async with http.get(f"/v1/adapters/{task.name}/versions/{version['version']}/files/{name}") as answer:
                    if await answer.read() != data:
                        self.wrong.append(f"{task.name} {version['version']}: {name} is not what was sent")


async def _run(options: argparse.Namespace, scratch: Path) -> Endurance:
    save_tiny(scratch / "model")
    data = scratch / "data"
    more = ("--api-processes", str(options.api_processes)) if options.api_processes else ()
    with Server(str(scratch / "model"), None, data, 1, *more) as server:
        registry = await Registry.open(None, data)
        try:
            endurance = Endurance(server.url, options)
            began = time.monotonic()
            await endurance.run(server.pid, registry)
            endurance.counts["seconds"] = round(time.monotonic() - began)
        finally:
            await registry.close()
        left = sum(path.is_file() for path in (data / "blobs").rglob("*"))
        endurance.counts["blobs left"] = left
        if left:
            endurance.wrong.append(f"{left} blobs are left of what was deleted")
    return endurance


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="softmux bench endurance", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--writers", type=int, default=2)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds between a writer's changes (0.2)")
    parser.add_argument(
        "--overwrites", type=int, help="so many, without a pause; default: for as long as requests last"
    )
    parser.add_argument("--api-processes", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = asyncio.run(_run(options, Path(scratch)))
    growth = {kind: slope(points) for kind, points in found.memory.items()}
    out = sys.stdout
    out.write(", ".join(f"{count:,} {what}" for what, count in found.counts.items()) + "\n")
    for kind, points in found.memory.items():
        out.write(f"{kind:8} {points[-1][1] / 2**20:8.1f} MiB, {growth[kind] / 1000:+8.1f} kB per 1,000 requests\n")
    out.write(f"{len(found.wrong)} wrong\n" + "".join(f"  {line}\n" for line in found.wrong[:20]))
    if options.output_json is not None:
        figures = {"counts": found.counts, "bytes_per_1000_requests": growth, "wrong": found.wrong[:100]}
        options.output_json.write_text(json.dumps(figures, indent=2) + "\n")
    return 1 if found.wrong else 0
