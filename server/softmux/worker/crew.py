"""The other processes of a model that several hold: rank 0, the worker, starts them, and they live and die together.

The supervisor knows the worker alone. A rank that dies takes the worker with it, in its own manner; the kernel ends the
ranks whose worker has died, however it did.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from softmux.engine.engine import Engine, pick_device
from softmux.engine.parallel.leader import Leader
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.parallel.sharded import ShardedModel
from softmux.errors import SelfTestFailed
from softmux.settings import Settings
from softmux.worker.config import REFUSED, RankConfig, WorkerConfig

log = logging.getLogger(__name__)

RANK_COMMAND = (sys.executable, "-m", "softmux.worker.rank")
_END_SECONDS = 5.0


def device_of(settings: Settings, rank: int) -> torch.device:
    """The rank's own. Raises `SelfTestFailed` where there are fewer GPUs than ranks."""
    device = pick_device(settings.device)
    if device.type != "cuda":
        return device
    if torch.cuda.device_count() < settings.tensor_parallel:
        raise SelfTestFailed(
            f"--tensor-parallel {settings.tensor_parallel} needs as many GPUs, and this machine shows "
            f"{torch.cuda.device_count()}: lower it, or look at CUDA_VISIBLE_DEVICES"
        )
    return torch.device("cuda", rank)


class Process(Protocol):
    """Of `subprocess.Popen` what is needed."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


Start = Callable[[RankConfig], Process]


def start_rank(config: RankConfig) -> Process:
    process = subprocess.Popen(RANK_COMMAND, stdin=subprocess.PIPE)  # noqa: S603 - this very program
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    process.stdin.flush()
    return process


class Crew:
    """Rank 0's handle on the others. Made on the main thread, whose end the kernel tells them of."""

    def __init__(self, settings: Settings, config: WorkerConfig, start: Start = start_rank) -> None:
        """Starts the others, and returns once all have met. Raises `SelfTestFailed` where they could not do it."""
        device = device_of(settings, 0)
        beside = Path(config.endpoint.removeprefix("ipc://")).parent
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-", dir=beside, ignore_cleanup_errors=True)
        folder, size = Path(self._folder.name), settings.tensor_parallel
        self._ending = False
        self._endpoints = [(f"ipc://{folder}/orders-{rank}", f"ipc://{folder}/gifts-{rank}") for rank in range(1, size)]
        self._processes = [
            start(RankConfig(rank, str(folder / "meeting"), *endpoints, os.getpid(), config.settings))
            for rank, endpoints in enumerate(self._endpoints, 1)
        ]
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), name=f"rank-{process.pid}", daemon=True).start()
        self.ranks = Ranks(0, size, device, folder / "meeting")

    def serve(self, engine: Engine) -> None:
        """The engine, loaded as those of the others are, leads them from now on."""
        model = engine.model
        assert isinstance(model, ShardedModel)
        engine.lead(Leader(self._endpoints, [replace(model.cut, rank=rank) for rank in range(self.ranks.size)]))

    def end(self) -> None:
        """They have been told to end; who does not is killed."""
        self._ending = True
        for process in self._processes:
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._folder.cleanup()

    def _watch(self, process: Process) -> None:
        code = process.wait()
        if self._ending or not code:
            return
        if code == REFUSED:
            os._exit(REFUSED)  # its words are on stderr
        log.error("rank process %d ended with code %s: the others end with it", process.pid, code)
        if code < 0:
            os.kill(os.getpid(), signal.SIGKILL)  # not half-way through anything that waits for the dead
        os._exit(1)
