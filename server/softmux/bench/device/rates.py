"""What a device reaches in plain copies and products: what a step's figures are held against, in the same run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch


def copy_rate(device: torch.device, size: int = 1 << 30) -> float:
    """Bytes a second that a copy of `size` bytes on the device moves, read and written."""
    source = torch.empty(size, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    return 2 * size / median_seconds(device, lambda: target.copy_(source), 10)


def product_rate(device: torch.device, dtype: torch.dtype, side: int = 8192) -> float:
    """Operations a second (an addition and a multiplication each) of a product of two square matrices."""
    left, right = (torch.randn((side, side), dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / median_seconds(device, lambda: torch.mm(left, right, out=out), 10)


def median_seconds(device: torch.device, call: Callable[[], object], repeats: int) -> float:
    """Of a call: on a GPU what the device takes for it, elsewhere what the clock shows. The first is not counted."""
    return statistics.median([_seconds(device, call) for _ in range(repeats + 1)][1:])


def _seconds(device: torch.device, call: Callable[[], object]) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def settle(device: torch.device) -> None:
    """Waits for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def name_of(device: torch.device) -> str:
    return str(torch.cuda.get_device_name()) if device.type == "cuda" else "CPU"
