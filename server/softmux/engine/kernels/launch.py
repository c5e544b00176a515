"""Programmatic dependent launch (Hopper): a kernel starts while the one before it ends, and waits before it reads.

It takes the gaps out of a chain of short kernels. A kernel that takes part lets its successor start at once
(`gdc_launch_dependents`), and waits for its predecessor's last write (`gdc_wait`) before it touches what that wrote;
weights, which no kernel writes, may be loaded before the wait.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda as tl_cuda


@triton.jit
def follows(PDL: tl.constexpr):
    """First statement of a kernel that reads what the kernel before it wrote."""
    if PDL:
        tl_cuda.gdc_launch_dependents()
        tl_cuda.gdc_wait()


@functools.cache
def capable(index: int) -> bool:
    """Whether the card of that index is a Hopper or newer."""
    return torch.cuda.get_device_capability(index) >= (9, 0)


def pdl_options(x: torch.Tensor) -> dict[str, Any]:
    """Launch options of a kernel that takes part: dependent launch where the device of `x` has it."""
    if x.is_cuda and capable(x.device.index or 0):
        return {"PDL": True, "launch_pdl": True}
    return {"PDL": False}
