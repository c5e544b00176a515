"""Host memory that a device copies from or to by itself, made once and used again."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

_DEPTH = 3
"""Steps that may have a buffer each: the one being built, the one in flight, and one that failed between them."""


class Buffer:
    """`tensor` and `array` are the same numbers; page-locked where the device is a GPU."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        gpu = device.type == "cuda"
        self.tensor = torch.zeros(shape, dtype=dtype, pin_memory=gpu)
        self.array: np.ndarray[Any, Any] = self.tensor.numpy()
        self._done = torch.cuda.Event() if gpu else None

    def mark(self) -> None:
        """What the device has been given by now may use the buffer."""
        if self._done is not None:
            self._done.record()

    def wait(self) -> None:
        """Returns when the device has done all that it had been given at the last `mark`."""
        if self._done is not None:
            self._done.synchronize()


class Ring:
    """Buffers of one shape taking turns, so that one can be filled while copies of those before are on their way."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self._buffers = [Buffer(shape, dtype, device) for _ in range(_DEPTH)]
        self._turn = 0

    def next(self) -> Buffer:
        """The buffer that was used longest ago; waits for the device to be done with it, which it is as a rule."""
        self._turn = (self._turn + 1) % _DEPTH
        buffer = self._buffers[self._turn]
        buffer.wait()
        return buffer
