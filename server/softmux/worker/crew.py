"""The other processes of a model that several hold: rank 0, the worker, starts them, and they live and die together.

The supervisor knows the worker alone. A rank that dies takes the worker with it, in its own manner; the kernel ends the
ranks whose worker has died, however it did. No torch here: they are started before it is loaded, and load their own.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from softmux.worker.config import REFUSED, RankConfig

log = logging.getLogger(__name__)

RANK_COMMAND = (sys.executable, "-m", "softmux.worker.rank")
_END_SECONDS = 5.0


class Process(Protocol):
    """Of `subprocess.Popen` what is needed."""

    pid: int

    def wait(self, timeout: float | None = None) -> int: ...

    def kill(self) -> None: ...


Start = Callable[[RankConfig], Process]


def start_rank(config: RankConfig, command: Sequence[str] = RANK_COMMAND) -> Process:
    process = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - this very program
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(config) + b"\n")
    process.stdin.flush()
    return process


class Crew:
    """Ranks 1 to `size` − 1. Made on the main thread, whose end the kernel tells them of.

    `meeting` is the file by which all ranks find each other; `endpoints`, of each of them, the ipc:// addresses where
    it hears orders, and where it is given adapters.
    """

    def __init__(self, size: int, beside: Path, settings: dict[str, Any], start: Start = start_rank) -> None:
        """Starts them. What they share lies in a folder of its own in `beside`."""
        self._folder = tempfile.TemporaryDirectory(prefix="ranks-", dir=beside, ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        self.size, self.meeting = size, folder / "meeting"
        self.endpoints = [(f"ipc://{folder}/orders-{rank}", f"ipc://{folder}/gifts-{rank}") for rank in range(1, size)]
        self._ending = False
        self._processes = [
            start(RankConfig(rank, str(self.meeting), *endpoints, os.getpid(), settings))
            for rank, endpoints in enumerate(self.endpoints, 1)
        ]
        for process in self._processes:
            threading.Thread(target=self._watch, args=(process,), name=f"rank-{process.pid}", daemon=True).start()

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
