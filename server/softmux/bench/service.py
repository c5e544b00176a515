"""The HTTP service against the same engine called in-process, 64 clients, taking turns."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from softmux.bench.offline import OfflineEngine
from softmux.bench.peers import load_base
from softmux.bench.workload import Job, make_adapters, make_jobs
from softmux.formats.folder import load_folder
from softmux.settings import Settings

_START_SECONDS = 300


@dataclass(slots=True)
class ServiceFigures:
    """New tokens a second, one a repeat; and each request's latency over HTTP, in seconds."""

    service: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


class Server:
    """A `softmux serve` process of its own, on a free port of the loopback address, for the length of a `with`."""

    def __init__(self, model: str, adapters: Path, data: Path, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "softmux.cli", "serve", "--model", model, "--adapters", str(adapters)]
        command += ["--port", str(port), "--data", str(data), "--device", "cpu", "--dtype", "float32"]
        environment = os.environ | {
            "SOFTMUX_THREADS": str(threads),
            "SOFTMUX_KV_TOKENS": "16384",
            "SOFTMUX_LOG_LEVEL": "warning",
        }
        self._process = subprocess.Popen(command, env=environment)  # noqa: S603

    def __enter__(self) -> Server:
        ends = time.monotonic() + _START_SECONDS
        while time.monotonic() < ends:
            if self._process.poll() is not None:
                raise RuntimeError(f"softmux serve ended with {self._process.returncode}")
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.__exit__()
        raise RuntimeError(f"softmux serve was not ready within {_START_SECONDS} s")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


async def _ask(client: httpx.AsyncClient, job: Job, names: list[str], latencies: list[float]) -> int:
    began = time.perf_counter()
    body: dict[str, Any] = {"prompt": list(job.ids), "max_tokens": job.new_tokens, "ignore_eos": True}
    assert job.task is not None
    reply = await client.post("/v1/generate", params={"task": names[job.task]}, json=body)
    reply.raise_for_status()
    latencies.append(time.perf_counter() - began)
    return int(reply.json()["usage"]["completion_tokens"])


async def drive(url: str, jobs: list[Job], names: list[str], latencies: list[float]) -> float:
    """All jobs at once, a client each → new tokens a second."""
    limits = httpx.Limits(max_connections=len(jobs))
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await asyncio.gather(*(client.get("/health/live") for _ in jobs))  # connections are open beforehand
        began = time.perf_counter()
        tokens = await asyncio.gather(*(_ask(client, job, names, latencies) for job in jobs))
        return sum(tokens) / (time.perf_counter() - began)


def run_service(model: str, *, threads: int, repeats: int, clients: int = 64, tasks: int = 16) -> ServiceFigures:
    """Each repeat sends new prompts, the same to both; adapters are warm in both."""
    figures = ServiceFigures()
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_adapters(load_base(model), Path(scratch) / "adapters", tasks)
        names = [folder.name for folder in folders]
        settings = Settings(model=model, device="cpu", dtype="float32", threads=threads, kv_tokens=16384)
        engine = OfflineEngine(settings, [load_folder(folder) for folder in folders])
        vocabulary = engine.engine.spec.vocab_size
        with Server(model, Path(scratch) / "adapters", Path(scratch) / "data", threads) as server:
            for repeat in range(repeats + 1):
                jobs = make_jobs(clients, tasks, lengths=(8, 32), new_tokens=32, vocabulary=vocabulary, seed=repeat)
                latencies: list[float] = []
                service = asyncio.run(drive(server.url, jobs, names, latencies))
                direct = engine.run(jobs).rate
                if repeat:  # the first one warms both up
                    figures.service.append(service)
                    figures.engine.append(direct)
                    figures.latencies.extend(latencies)
        engine.close()
    return figures
