"""Host memory for the tiers: page-locked slabs taken once and handed out in parts, since page-locking each adapter's
own memory costs milliseconds and makes the device wait."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import torch

_ALIGNMENT = 256
_FIRST_SLAB = 32 << 20
_LARGEST_SLAB = 1 << 30


Empty = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
"""Where an adapter's tensors get their memory: `HostArena.empty`, or `pageable`."""


def pageable(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor in ordinary memory."""
    return torch.empty(shape, dtype=dtype)


class _Extent:
    """A part of a slab. Tensors over it keep it alive; with the last of them it goes back to its arena."""

    def __init__(self, arena: HostArena, address: int, size: int, used: int) -> None:
        self._arena = arena
        self._part = (address, size)
        self.__array_interface__ = {"data": (address, False), "shape": (used,), "typestr": "|u1", "version": 3}

    def __del__(self) -> None:
        self._arena._returned.append(self._part)  # an append is atomic, whatever thread or collection this runs in


class HostArena:
    """`empty` gives tensors in host memory. What one held is handed out again once no tensor views it any more: a copy
    in flight keeps its source or target by keeping a tensor. Safe to call from any thread.

    Slabs are never given back: the tiers' budget bounds what is used of them.
    """

    def __init__(self, *, pinned: bool, first_slab: int = _FIRST_SLAB, spent: deque[object] | None = None) -> None:
        """`spent`: what nobody has a use for any more and may still hold parts; it is let go where there is no room."""
        self._pinned = pinned
        self._spent: deque[object] = deque() if spent is None else spent
        self._lock = threading.Lock()
        self._slabs: list[torch.Tensor] = []
        self._by_size: dict[int, list[int]] = {}
        self._returned: deque[tuple[int, int]] = deque()
        self.size = 0
        self.grow(first_slab)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor; page-locks another slab where there is no room, which may hold up the device."""
        while (found := self.take(shape, dtype)) is None:
            self.grow(math.prod(shape) * dtype.itemsize)
        return found

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        """As `empty`, but None where there is no room."""
        used = math.prod(shape) * dtype.itemsize
        if not used:
            return torch.empty(shape, dtype=dtype)
        size = -(-used // _ALIGNMENT) * _ALIGNMENT
        with self._lock:
            address = self._take(size)
        if address is None and self._spent:
            self._spent.clear()
            with self._lock:
                address = self._take(size)
        if address is None:
            return None
        held = np.asarray(_Extent(self, address, size, used))
        return torch.frombuffer(held, dtype=dtype).view(shape)

    def grow(self, least: int = 0) -> None:
        """Another slab, as large as all so far up to 1 GiB, and `least` bytes at least."""
        size = -(-max(min(_LARGEST_SLAB, self.size), least) // _ALIGNMENT) * _ALIGNMENT
        slab = torch.empty(size + _ALIGNMENT, dtype=torch.uint8, pin_memory=self._pinned)
        with self._lock:
            self._slabs.append(slab)
            self._push(-(-slab.data_ptr() // _ALIGNMENT) * _ALIGNMENT, size)
            self.size += size

    # --- parts -------------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> int | None:
        self._sweep()
        if size in self._by_size:
            return self._pop(size)
        address = self._split(size)
        if address is None:
            self._merge()
            address = self._split(size)
        return address

    def _sweep(self) -> None:
        while self._returned:
            self._push(*self._returned.popleft())

    def _push(self, address: int, size: int) -> None:
        self._by_size.setdefault(size, []).append(address)

    def _pop(self, size: int) -> int:
        addresses = self._by_size[size]
        address = addresses.pop()
        if not addresses:
            del self._by_size[size]
        return address

    def _split(self, size: int) -> int | None:
        """From the smallest part that is large enough."""
        found = min((free for free in self._by_size if free >= size), default=None)
        if found is None:
            return None
        address = self._pop(found)
        if found > size:
            self._push(address + size, found - size)
        return address

    def _merge(self) -> None:
        """Neighbouring free parts become one."""
        parts = sorted((address, size) for size, addresses in self._by_size.items() for address in addresses)
        borders = {slab.data_ptr() for slab in self._slabs}
        merged: list[tuple[int, int]] = []
        for address, size in parts:
            if merged and sum(merged[-1]) == address and address not in borders:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((address, size))
        self._by_size.clear()
        for address, size in merged:
            self._push(address, size)

    @property
    def free(self) -> int:
        """Bytes of the slabs that nothing uses."""
        with self._lock:
            self._sweep()
            return sum(size * len(addresses) for size, addresses in self._by_size.items())
