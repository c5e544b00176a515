"""Getting small lists of numbers to the device without making the host wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def to_device(numbers: Sequence[Any], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """A tensor of `numbers` on `device`. For a GPU through pinned memory: a copy from pageable memory would wait for
    every kernel before it."""
    host = torch.tensor(numbers, dtype=dtype)
    if device.type == "cpu":
        return host
    return host.pin_memory().to(device, non_blocking=True)
