"""Getting small lists of numbers to the device without making the host wait for it, and hearing that it is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_LINE = 16
"""Numbers of 8 bytes in 128."""
_FULL = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def to_device(
    numbers: Sequence[Any] | npt.NDArray[Any], device: torch.device, dtype: torch.dtype = torch.int64
) -> torch.Tensor:
    """A tensor of `numbers` on `device`. For a GPU through pinned memory: a copy from pageable memory would wait for
    every kernel before it."""
    host = torch.tensor(numbers, dtype=dtype)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)


def send(device: torch.device, *arrays: npt.NDArray[np.integer[Any]]) -> list[torch.Tensor]:
    """Arrays of one dimension as int64 tensors on `device`, sent in one copy.

    Each begins on a whole line of memory: kernels are compiled anew for pointers that lie otherwise.
    """
    begins = np.cumsum([0, *(-(-len(array) // _LINE) * _LINE for array in arrays)])
    host = np.zeros(begins[-1], np.int64)
    for array, begin in zip(arrays, begins.tolist(), strict=False):
        host[begin : begin + len(array)] = array
    sent = to_device(host, device)
    return [sent[begin : begin + len(array)] for array, begin in zip(arrays, begins.tolist(), strict=False)]


def is_shortage(error: Exception) -> bool:
    """Whether it says that the device has no memory left: nothing is broken then."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _FULL)
