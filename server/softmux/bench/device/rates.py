"""What a device reaches in plain copies and products: what a step's figures are held against, in the same run."""

from __future__ import annotations

import statistics
import sys
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


def kernel_seconds(device: torch.device, call: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Of a call, by torch's profiler: how often each kernel ran (on a CPU: each operation) and its seconds in all."""
    kind = torch.profiler.ProfilerActivity.CUDA if device.type == "cuda" else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[kind]) as profiler:
        call()
        settle(device)
    times: dict[str, tuple[int, float]] = {}
    for event in profiler.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        if spent:
            times[event.key] = event.count, spent / 1e6
    return times


def told_times(times: dict[str, tuple[int, float]], most: int = 16) -> None:
    """Writes the `most` that took longest, the longest first, and the sum of all."""
    everything = sum(seconds for _, seconds in times.values())
    for name, (count, seconds) in sorted(times.items(), key=lambda item: -item[1][1])[:most]:
        sys.stdout.write(f"{seconds * 1e3:10.3f} ms {seconds / everything:6.1%} {count:6} x {name[:90]}\n")
    sys.stdout.write(f"{everything * 1e3:10.3f} ms in all, of {len(times)} kernels\n")


def settle(device: torch.device) -> None:
    """Waits for what the device has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def name_of(device: torch.device) -> str:
    return str(torch.cuda.get_device_name()) if device.type == "cuda" else "CPU"
