"""A run of `softmux tune` that is killed (SIGKILL) at a point of its own, not at a time."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_KILLED = """
import os, signal, sys
from softmux.tuning.training.checkpoint import Checkpoint
saves, save = int(sys.argv.pop(1)), Checkpoint.save
def counted(self, trainer):
    global saves
    save(self, trainer)
    saves -= 1
    if not saves:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = counted
from softmux.cli import app
app()
"""


def killed_after(saves: int, recipes: Sequence[Path], out: Path, cache: Path, every: int = 3) -> bool:
    """Runs the command, which ends by SIGKILL when it has been saved so often; whether it did."""
    more = ("--out", out, "--device", "cpu", "--no-report", "--cache", cache, "--save-every", every)
    command = [sys.executable, "-c", _KILLED, str(saves), "tune", *map(str, (*recipes, *more))]
    ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=600, check=False)
    return ended.returncode == -signal.SIGKILL
