"""How much memory the device has, and who has it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch

_SECONDS = 2.0
"""A driver's answer is not asked for more often than so."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class DeviceMemory:
    """`read` gives the gauges `device_memory_*`: a GPU's memory, or the host's where the model runs on its CPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._read = float("-inf")
        self._found: dict[str, float] = {}

    def read(self) -> dict[str, float]:
        now = time.monotonic()
        if now - self._read >= _SECONDS:
            self._read = now
            total, used, reserved = self._gpu() if self._device.type == "cuda" else _host()
            self._found = {
                "device_memory_total_bytes": float(total),
                "device_memory_used_bytes": float(used),
                "device_memory_reserved_bytes": float(reserved),
            }
        return self._found

    def _gpu(self) -> tuple[int, int, int]:
        free, total = torch.cuda.mem_get_info(self._device)
        return total, total - free, torch.cuda.memory_reserved(self._device)


def _host() -> tuple[int, int, int]:
    """Of the host: all, in use, this process's. Zeros where it does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if ":" in line}
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0, 0, 0
    total = 1024 * kilobytes["MemTotal"]
    return total, total - 1024 * kilobytes["MemAvailable"], pages * _PAGE
