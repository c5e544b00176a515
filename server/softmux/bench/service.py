"""The HTTP service against the same engine called in-process, 64 clients, taking turns."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

from softmux.bench.client import Endpoint
from softmux.bench.clients import HttpTarget
from softmux.bench.lengths import parse_lengths
from softmux.bench.load import Plan
from softmux.bench.mixes import TaskMix
from softmux.bench.offline import OfflineEngine, OfflineTarget
from softmux.bench.peers import load_base
from softmux.bench.race import Contender, Race, closing, run_race
from softmux.bench.workload import make_adapters
from softmux.formats.folder import load_folder
from softmux.settings import Settings

ENGINE = "engine in-process"
_START_SECONDS = 300


class Server:
    """A `softmux serve` process of its own, on a free port of the loopback address, for the length of a `with`; in
    float32 on a CPU, in the model's own dtype on a GPU."""

    def __init__(
        self, model: str, adapters: Path | None, data: Path, threads: int, *options: str, device: str = "cpu"
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "softmux.cli", "serve", "--model", model, *options]
        command += ["--adapters", str(adapters)] if adapters else []
        command += ["--port", str(port), "--data", str(data), "--device", device]
        command += ["--dtype", "float32" if device == "cpu" else "auto"]
        environment = os.environ | {
            "SOFTMUX_THREADS": str(threads),
            "SOFTMUX_KV_TOKENS": "16384",
            "SOFTMUX_LOG_LEVEL": "warning",
        }
        self._process = subprocess.Popen(command, env=environment)  # noqa: S603

    @property
    def pid(self) -> int:
        return self._process.pid

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
        self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(60)


def run_service(model: str, *, threads: int, repeats: int, clients: int = 64, tasks: int = 16) -> tuple[Plan, Race]:
    """Each repeat sends new prompts, the same to all, a client each; adapters are warm in both engines."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_adapters(load_base(model), Path(scratch) / "adapters", tasks)
        settings = Settings(model=model, device="cpu", dtype="float32", threads=threads, kv_tokens=16384)
        engine = OfflineEngine(settings, [load_folder(folder) for folder in folders])
        plan = Plan(
            tasks=tuple(folder.name for folder in folders),
            vocabulary=engine.engine.spec.vocab_size,
            requests=clients,
            mix=TaskMix(),
            input_len=parse_lengths("uniform:8:32"),
            output_len=parse_lengths("32"),
            request_rate=float("inf"),
            concurrency=clients,
            warmups=clients,
        )
        with Server(model, Path(scratch) / "adapters", Path(scratch) / "data", threads) as server:
            contenders = [
                Contender(ENGINE, OfflineTarget(ENGINE, engine)),
                Contender("HTTP, whole replies", HttpTarget("whole", Endpoint(server.url, stream=False))),
                Contender("HTTP, streaming", HttpTarget("streaming", Endpoint(server.url))),
            ]
            with closing(contenders):
                race = run_race(plan, contenders, repeats=repeats)
    return plan, race
