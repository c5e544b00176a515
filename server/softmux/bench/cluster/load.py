"""A closed loop of short requests on a cluster, while its replicas come and go: what was answered, failed, cut off."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from softmux.bench.bases.tiny import adapter_files
from softmux.bench.loads.mixes import TaskMix

_TOKENS = 4
_STREAMED = 4
"""Every so many requests, one is streamed."""


@dataclass(slots=True)
class Answered:
    """`cut`: streams that ended early, after a part of the answer had come: nobody can send those again unnoticed."""

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    took: float = 0.0


def task_name(number: int) -> str:
    return f"task-{number}"


async def upload(url: str, tasks: int, virtual: int, *, at_once: int = 8) -> None:
    """`tasks` soft prompts of `virtual` vectors, through the cluster's own door."""
    numbers = iter(range(tasks))

    async def some(http: aiohttp.ClientSession) -> None:
        for number in numbers:
            form = aiohttp.FormData()
            for name, data in adapter_files("PROMPT_TUNING", virtual, number).items():
                form.add_field(name, data, filename=name)
            async with http.put(f"/v1/adapters/{task_name(number)}", data=form) as reply:
                if reply.status not in (200, 201):
                    raise RuntimeError(f"upload {number}: {reply.status} {await reply.text()}")

    async with aiohttp.ClientSession(url) as http:
        await asyncio.gather(*(some(http) for _ in range(at_once)))


class ClusterLoad:
    def __init__(self, url: str, tasks: int, exponent: float, clients: int, seed: int = 0) -> None:
        self._url = url
        self._draw = np.random.default_rng(seed)
        self._mix, self._tasks, self._clients = TaskMix(exponent), tasks, clients

    async def run(self, requests: int, until: asyncio.Event | None = None) -> Answered:
        """So many requests, or as many as it takes until `until` is set."""
        found, began = Answered(), time.monotonic()
        chosen = iter(self._mix.draw(requests, self._tasks, self._draw))
        sent = 0

        async def ask_on(http: aiohttp.ClientSession) -> None:
            nonlocal sent
            for number in chosen:
                if until is not None and until.is_set():
                    return
                sent += 1
                began = time.monotonic()
                await self._ask(http, number or 0, sent % _STREAMED == 0, found)
                found.seconds.append(time.monotonic() - began)

        limit = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._url, connector=limit, timeout=aiohttp.ClientTimeout(120)) as http:
            await asyncio.gather(*(ask_on(http) for _ in range(self._clients)))
        found.took = time.monotonic() - began
        return found

    async def _ask(self, http: aiohttp.ClientSession, number: int, stream: bool, found: Answered) -> None:
        body = {"prompt": [3 + number % 90, 7], "max_tokens": _TOKENS, "ignore_eos": True, "return_token_ids": True}
        some = False
        try:
            asked: dict[str, Any] = {"params": {"task": task_name(number)}, "json": body | {"stream": stream}}
            async with http.post("/v1/generate", **asked) as reply:
                if reply.status != 200:
                    found.failed[f"{reply.status} {(await reply.text())[:120]}"] += 1
                elif stream:
                    text = b""
                    async for part in reply.content.iter_any():
                        some = True
                        text += part
                    if not text.endswith(b"data: [DONE]\n\n"):
                        found.cut += 1
                elif len((await reply.json())["choices"][0]["token_ids"]) != _TOKENS:
                    found.failed["an answer of another length"] += 1
        except (aiohttp.ClientError, TimeoutError) as error:
            if some:
                found.cut += 1
            else:
                found.failed[f"{type(error).__name__}: {error}"[:120]] += 1
