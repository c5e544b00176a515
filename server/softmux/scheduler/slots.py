"""The KV pool's bookkeeping: which slots are free. The tensors behind the slots are the engine's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int32]


class SlotPool:
    """A free list over `capacity` slots, one token's keys and values each (a page of one token).

    Page size one makes sharing exact to the token: a 20-vector prompt is shared whole, a trained prefix keeps its
    length, and no copy-on-write is needed where two texts part. The list is a stack in one array, so that a step's
    slots are taken as one block.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.free = capacity
        self._stack: Slots = np.arange(capacity - 1, -1, -1, dtype=np.int32)

    def take(self, count: int) -> Slots:
        """`count` slots. The caller has made sure that so many are free."""
        if count > self.free:
            raise RuntimeError(f"asked for {count} KV slots, {self.free} are free")
        self.free -= count
        return self._stack[self.free : self.free + count].copy()

    def give(self, slots: Sequence[int] | Slots) -> None:
        end = self.free + len(slots)
        if end > self.capacity:
            raise RuntimeError(f"{len(slots)} KV slots are given back, {self.capacity - self.free} were out")
        self._stack[self.free : end] = slots
        self.free = end

    def check_integrity(self, held: Iterable[int]) -> None:
        """Every slot is either free or in `held` (by the tree or by one sequence), exactly once."""
        taken = list(held)
        everywhere = sorted([*self._stack[: self.free].tolist(), *taken])
        if everywhere != list(range(self.capacity)):
            missing = sorted(set(range(self.capacity)) - set(everywhere))
            raise AssertionError(
                f"KV slots do not add up: {self.free} free + {len(taken)} held of {self.capacity}; "
                f"leaked {missing[:8]}, counted twice: {len(everywhere) - len(set(everywhere))}"
            )
