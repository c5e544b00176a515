"""What a server does when it is asked too much, left, or broken: `softmux bench faults [WHAT]`.

overload     an open loop at three times what it can do: goodput, and how long a refusal takes
crowd        thousands of requests at once: each is answered, with a result or a clean refusal
disconnects  clients that leave in the middle of a stream: when their rows are free again
drain        SIGTERM under load, again and again: streams that are cut off
deaths       kill -9 and SIGSTOP of the worker: when clients are told, when it is ready again

Each starts a server of its own on this machine: a tiny random model, or `--model`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.table import Table

from softmux.bench.bases.tiny import VOCABULARY, save_tiny
from softmux.bench.loads.report import wide_console, write_json
from softmux.bench.peers.service import Server

Figures = dict[str, float | int | str]
_WITHIN = aiohttp.ClientTimeout(total=120)


@dataclass(slots=True)
class Answer:
    """`status` 0: the connection failed. `code` is an error's, `whole` whether all that was asked for came."""

    status: int = 0
    code: str = ""
    tokens: int = 0
    whole: bool = False
    seconds: float = 0.0


@dataclass(slots=True)
class Client:
    """Asks one server for `new` tokens after random prompts, none twice."""

    url: str
    session: aiohttp.ClientSession
    new: int
    draw: random.Random = field(default_factory=random.Random)

    def _body(self, **more: Any) -> dict[str, Any]:
        prompt = [self.draw.randrange(10, VOCABULARY) for _ in range(16)]
        return {"prompt": prompt, "max_tokens": self.new, "ignore_eos": True, **more}

    async def ask(self, **more: Any) -> Answer:
        began, answer = time.monotonic(), Answer()
        try:
            async with self.session.post(f"{self.url}/v1/generate", json=self._body(**more)) as response:
                said = await response.json()
                answer.status, answer.code = response.status, said.get("error", {}).get("code", "")
                if response.status in (429, 503) and "retry-after" not in response.headers:
                    answer.code = "no retry-after"
                answer.tokens = said.get("usage", {}).get("completion_tokens", 0)
                answer.whole = answer.tokens == self.new
        except (aiohttp.ClientError, TimeoutError) as error:
            answer.code = type(error).__name__
        answer.seconds = time.monotonic() - began
        return answer

    async def stream(self, heard: Callable[[], Any] = lambda: None, *, leave: bool = False) -> Answer:
        """`heard` is called with each event; `leave`: the first is enough."""
        began, answer = time.monotonic(), Answer()
        try:
            async with self.session.post(f"{self.url}/v1/generate", json=self._body(stream=True)) as response:
                answer.status = response.status
                text = b""
                async for line in response.content:
                    text = line if line.startswith(b"data: {") or line.startswith(b"{") else text
                    heard()
                    answer.whole = answer.whole or line.startswith(b"data: [DONE]")
                    if leave:
                        response.close()
                        break
                if b'"error"' in text:
                    answer.code, answer.whole = text.split(b'"code":"')[1].split(b'"')[0].decode(), False
        except (aiohttp.ClientError, TimeoutError) as error:
            answer.code, answer.whole = type(error).__name__, False
        answer.seconds = time.monotonic() - began
        return answer

    async def gauge(self, name: str) -> float:
        async with self.session.get(f"{self.url}/metrics") as response:
            text = await response.text()
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"softmux_{name} "))

    async def ready(self) -> bool:
        try:
            async with self.session.get(f"{self.url}/health/ready") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 120.0) -> float:
    """How long it took. Raises `TimeoutError`."""
    began = time.monotonic()
    while not await condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError("it did not happen in time")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


def percentile(values: Sequence[float], share: float) -> float:
    """0 of none."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def capacity(client: Client, rows: int, seconds: float) -> float:
    """Tokens per second with as many clients as rows, each asking again once it is answered: nobody waits."""
    tokens, began = 0, time.monotonic()

    async def closed() -> None:
        nonlocal tokens
        while time.monotonic() < began + seconds:
            answer = await client.ask()
            tokens += answer.tokens
            await asyncio.sleep(0 if answer.whole else 1)

    await asyncio.gather(*(closed() for _ in range(rows)))
    return tokens / (time.monotonic() - began)


async def overload(client: Client, server: Server, options: argparse.Namespace) -> Figures:
    """Capacity is the mean of before and after: a machine that others use, too, changes."""
    seconds, long = options.seconds, max(10.0, options.seconds / 10)
    before = await capacity(client, options.rows, long)
    rate, answers = options.load * before / client.new, list[Answer]()
    asking: set[asyncio.Task[None]] = set()

    async def one() -> None:
        answers.append(await client.ask(timeout=options.deadline))

    began = due = time.monotonic()
    while due < began + seconds:
        due += client.draw.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(one())
        asking.add(task)
        task.add_done_callback(asking.discard)
    while asking:
        await asyncio.wait(set(asking))
    took = time.monotonic() - began  # until the last is answered: a queue that ran empty counts against us
    good = sum(answer.tokens for answer in answers if answer.status == 200) / took
    after = await capacity(client, options.rows, long)
    refusals = [answer.seconds for answer in answers if answer.status in (429, 503)]
    return {
        "capacity before and after, tokens/s": f"{before:.0f}, {after:.0f}",
        "offered, requests/s": round(rate, 1),
        "requests": len(answers),
        "goodput / capacity": round(2 * good / (before + after), 3),
        "refused": len(refusals),
        "refusal p50, ms": round(1000 * percentile(refusals, 0.5), 1),
        "refusal p99, ms": round(1000 * percentile(refusals, 0.99), 1),
        "too late (408)": sum(answer.status == 408 for answer in answers),
        "else": str(dict(Counter(f"{a.status} {a.code}" for a in answers if a.status not in (200, 408, 429, 503)))),
    }


async def crowd(client: Client, server: Server, options: argparse.Namespace) -> Figures:
    began = time.monotonic()
    answers = await asyncio.gather(*(client.ask() for _ in range(options.count or 4096)))
    kinds = Counter(f"{answer.status} {answer.code}".strip() for answer in answers)
    clean = sum(answer.whole or answer.code in ("overloaded", "rate_limited") for answer in answers)
    return {
        "asked at once": len(answers),
        "answered": clean,
        "seconds": round(time.monotonic() - began, 1),
        "answers": str(dict(kinds)),
    }


async def disconnects(client: Client, server: Server, options: argparse.Namespace) -> Figures:
    left = 0
    count, at_once = options.count or 1000, asyncio.Semaphore(2 * options.rows)
    seconds: list[float] = []

    async def one() -> None:
        nonlocal left
        async with at_once:
            answer = await client.stream(leave=True)
            left += answer.status == 200 and not answer.whole

    async def free() -> bool:
        return not (await client.gauge("num_requests_running") or await client.gauge("num_requests_waiting"))

    for part in range(0, count, 100):  # how long is measured ten times
        await asyncio.gather(*(one() for _ in range(min(100, count - part))))
        seconds.append(await until(free))
    whole = await client.ask()
    return {
        "left in the middle": left,
        "rows free again after, s (longest)": round(max(seconds), 2),
        "served after": str(whole.whole),
    }


async def deaths(client: Client, server: Server, options: argparse.Namespace) -> Figures:
    figures: Figures = {}
    for name, number in (("kill -9", signal.SIGKILL), ("SIGSTOP", signal.SIGSTOP)):
        told, ready = list[float](), list[float]()
        codes: Counter[str] = Counter()
        for _ in range(options.count or 10):
            events = asyncio.Event()
            streams = [asyncio.create_task(client.stream(events.set)) for _ in range(8)]
            await events.wait()
            os.kill(worker_of(server.pid), number)
            began = time.monotonic()
            codes.update(answer.code for answer in await asyncio.gather(*streams))
            told.append(time.monotonic() - began)
            await until(client.ready)
            ready.append(time.monotonic() - began)
            if not (await client.ask()).whole:
                codes["not served after"] += 1
        figures |= {
            f"{name}: told, s (median, longest)": f"{statistics.median(told):.2f}, {max(told):.2f}",
            f"{name}: ready, s (median, longest)": f"{statistics.median(ready):.1f}, {max(ready):.1f}",
            f"{name}: what was told": str(dict(codes)),
        }
    return figures


async def drained(client: Client, server: Server) -> tuple[int, int]:
    """SIGTERM in the middle of many streams: how many there were, and how many did not end whole."""
    events, running = 0, asyncio.Event()

    def heard() -> None:
        nonlocal events
        events += 1
        if events >= 16:
            running.set()

    streams = [asyncio.create_task(client.stream(heard)) for _ in range(16)]
    await running.wait()
    os.kill(server.pid, signal.SIGTERM)
    answers = await asyncio.gather(*streams)
    streamed = [answer for answer in answers if answer.status == 200]  # others were refused, in words
    return len(streamed), sum(not answer.whole for answer in streamed)


SCENES = {"overload": overload, "crowd": crowd, "disconnects": disconnects, "deaths": deaths}


def worker_of(pid: int) -> int:
    """The worker's process, of a server's."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if b"softmux.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise RuntimeError("the server has no worker now")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="softmux bench faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", choices=(*SCENES, "drain", []), metavar="WHAT", help="default: all")
    parser.add_argument("--model", help="default: a tiny random one")
    parser.add_argument(
        "--hidden",
        type=int,
        default=512,
        help="the random model's width: so that the engine is what is short, not HTTP",
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, default=64, help="the server's --max-rows")
    parser.add_argument("--new", type=int, default=64, help="tokens asked for")
    parser.add_argument("--seconds", type=float, default=300, help="overload: how long")
    parser.add_argument("--load", type=float, default=3, help="overload: times what it can do")
    parser.add_argument("--deadline", type=float, default=10, help="overload: of each request, seconds")
    parser.add_argument("--count", type=int, help="crowd 4096, disconnects 1000, drain 20, deaths 10 of each kind")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    console, found = wide_console(), dict[str, Figures]()
    with tempfile.TemporaryDirectory() as scratch:
        model = options.model or str(Path(scratch) / "model")
        if options.model is None:
            save_tiny(Path(model), options.hidden)
        for what in options.what or (*SCENES, "drain"):
            table = Table("", what)
            found[what] = _run(what, model, Path(scratch) / what, options)
            for name, value in found[what].items():
                table.add_row(name, str(value))
            console.print(table)
    if options.json:
        write_json(options.json, found)
    return 0


def _run(what: str, model: str, folder: Path, options: argparse.Namespace) -> Figures:
    if what != "drain":
        with _server(model, folder, options) as server:
            return asyncio.run(_with_client(server, options, lambda client: SCENES[what](client, server, options)))
    streams = cut = 0
    codes: Counter[int] = Counter()
    for number in range(options.count or 20):
        server = _server(model, folder / str(number), options).__enter__()
        begun, short = asyncio.run(_with_client(server, options, lambda client, to=server: drained(client, to)))  # type: ignore[misc]
        streams, cut = streams + begun, cut + short
        codes[server.wait()] += 1
    return {"SIGTERMs": sum(codes.values()), "streams": streams, "cut off": cut, "exit codes": str(dict(codes))}


def _server(model: str, folder: Path, options: argparse.Namespace) -> Server:
    return Server(model, None, folder, options.threads, "--max-rows", str(options.rows))


async def _with_client(server: Server, options: argparse.Namespace, scene: Callable[[Client], Awaitable[Any]]) -> Any:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=_WITHIN) as session:
        return await scene(Client(server.url, session, options.new))
