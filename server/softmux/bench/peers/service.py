"""The HTTP service against the same engine called in-process, as many requests at a time as clients, taking turns.

`softmux bench service`: on the demo's model on a CPU; `--device cuda --model DIR --clients 256 --requests 1024
--client-processes 4 --input-len uniform:128:384 --output-len 128 --kv-tokens 200000` is a GPU's load. Both engines are
in memory at once. What each did is told by repeat: its steps by the way they ran, and the tokens it found in its cache.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx

from softmux.bench.clients.client import Endpoint
from softmux.bench.clients.clients import HttpTarget
from softmux.bench.loads.lengths import parse_lengths
from softmux.bench.loads.load import Load, Plan
from softmux.bench.loads.mixes import TaskMix
from softmux.bench.loads.race import Contender, Race, closing, run_race
from softmux.bench.loads.report import print_race, race_json, wide_console, write_json
from softmux.bench.loads.workload import make_adapters
from softmux.bench.peers.counted import CountedTarget, print_work, work_at, work_json, work_of
from softmux.bench.peers.offline import OfflineEngine, OfflineTarget
from softmux.bench.peers.peers import load_base, quiet_transformers
from softmux.errors import SoftmuxError
from softmux.formats.folder import load_folder
from softmux.settings import Settings

ENGINE = "engine in-process"
_START_SECONDS = 300


def _dtype(device: str) -> Literal["float32", "auto"]:
    return "float32" if device == "cpu" else "auto"


@dataclass(frozen=True, slots=True)
class Sizes:
    """`clients` requests at a time over `tasks`, `requests` a repeat (None: a client sends one); `kv_tokens` for the
    pool of each of the two engines."""

    clients: int = 64
    tasks: int = 16
    input_len: str = "uniform:8:32"
    output_len: str = "32"
    kv_tokens: int = 16384
    client_processes: int = 1
    requests: int | None = None


class Server:
    """A `softmux serve` process of its own, on a free port of the loopback address, for the length of a `with`; in
    float32 on a CPU, in the model's own dtype on a GPU."""

    def __init__(
        self,
        model: str,
        adapters: Path | None,
        data: Path,
        threads: int,
        *options: str,
        device: str = "cpu",
        kv_tokens: int = 16384,
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "softmux.cli", "serve", "--model", model, *options]
        command += ["--adapters", str(adapters)] if adapters else []
        command += ["--port", str(port), "--data", str(data), "--device", device]
        command += ["--dtype", _dtype(device)]
        environment = os.environ | {
            "SOFTMUX_THREADS": str(threads),
            "SOFTMUX_KV_TOKENS": str(kv_tokens),
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
                raise SoftmuxError(f"softmux serve ended with {self._process.returncode}; what it said stands above.")
            try:
                if httpx.get(f"{self.url}/health/ready").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.__exit__()
        raise SoftmuxError(f"softmux serve was not ready within {_START_SECONDS} s.")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return self._process.wait(60)


def service_contenders(url: str, processes: int) -> list[tuple[CountedTarget, Callable[[Load], Load]]]:
    """Targets, and what each does to a load. Whole replies and streams share the server at `url`, and must not find
    each other's prompts in its cache."""

    def target(name: str, *, stream: bool) -> CountedTarget:
        return CountedTarget(HttpTarget(name, Endpoint(url, stream=stream), processes), lambda: work_at(url))

    return [
        (target("HTTP, whole replies", stream=False), lambda load: load),
        (target("HTTP, streaming", stream=True), Load.backwards),
    ]


def run_service(
    model: str, *, threads: int, repeats: int, device: Literal["cpu", "cuda"] = "cpu", sizes: Sizes | None = None
) -> tuple[Plan, Race, list[CountedTarget]]:
    """Each repeat sends new prompts, as long to all; adapters are warm in both engines. The targets know what their
    engine did in each run."""
    size = sizes or Sizes()
    with tempfile.TemporaryDirectory() as scratch:
        folders = make_adapters(load_base(model), Path(scratch) / "adapters", size.tasks)
        settings = Settings(model=model, device=device, dtype=_dtype(device), threads=threads, kv_tokens=size.kv_tokens)
        engine = OfflineEngine(settings, [load_folder(folder) for folder in folders])
        plan = Plan(
            tasks=tuple(folder.name for folder in folders),
            vocabulary=engine.engine.spec.vocab_size,
            requests=size.requests or size.clients,
            mix=TaskMix(),
            input_len=parse_lengths(size.input_len),
            output_len=parse_lengths(size.output_len),
            request_rate=float("inf"),
            concurrency=size.clients,
            warmups=size.clients,
        )
        folder, data = Path(scratch) / "adapters", Path(scratch) / "data"
        with Server(model, folder, data, threads, device=device, kv_tokens=size.kv_tokens) as server:
            own = CountedTarget(OfflineTarget(ENGINE, engine), lambda: work_of(engine.engine))
            asked = [(own, lambda load: load), *service_contenders(server.url, size.client_processes)]
            contenders = [Contender(target.name, target, change) for target, change in asked]
            with closing(contenders):
                race = run_race(plan, contenders, repeats=repeats)
    return plan, race, [target for target, _ in asked]


def main(arguments: Sequence[str]) -> int:
    own = Sizes()
    parser = argparse.ArgumentParser(prog="softmux bench service", description=__doc__)
    parser.add_argument("--model", help="a folder in Hugging Face's layout; default: the demo's")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clients", type=int, default=own.clients, help="requests at a time")
    parser.add_argument("--requests", type=int, metavar="N", help="of each repeat; default: one for each client")
    parser.add_argument("--client-processes", type=int, choices=range(1, 65), default=1, metavar="N")
    parser.add_argument("--tasks", type=int, default=own.tasks)
    parser.add_argument("--input-len", default=own.input_len, metavar="LEN")
    parser.add_argument("--output-len", default=own.output_len, metavar="LEN")
    parser.add_argument("--kv-tokens", type=int, default=own.kv_tokens, help="of each of the two engines")
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args(arguments)
    quiet_transformers()
    if options.model is None:
        from softmux.demo import demo_model

        options.model = str(demo_model())
    sizes = Sizes(
        options.clients, options.tasks, options.input_len, options.output_len, options.kv_tokens,
        options.client_processes, options.requests,
    )  # fmt: skip
    console = wide_console()
    plan, race, targets = run_service(
        options.model, threads=options.threads, repeats=options.repeats, device=options.device, sizes=sizes
    )
    console.print(f"{options.model} on {options.device}: {plan.words()}")
    print_race(console, race)
    print_work(console, targets, options.repeats)
    if options.json:
        about = {"load": plan.words(), "device": options.device, "engine": work_json(targets, options.repeats)}
        write_json(options.json, race_json(race, about))
    return 0
