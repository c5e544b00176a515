"""The KV pool's bookkeeping: which slots are free. The tensors behind the slots are the engine's."""

from __future__ import annotations


class SlotPool:
    """A free list over `capacity` slots, one token's keys and values each (a page of one token).

    Page size one makes sharing exact to the token: a 20-vector prompt is shared whole, a trained prefix keeps its
    length, and no copy-on-write is needed where two texts part.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = list(range(capacity - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` slots. The caller has made sure that so many are free."""
        if count > len(self._free):
            raise RuntimeError(f"asked for {count} KV slots, {len(self._free)} are free")
        if count == 0:
            return []
        taken = self._free[-count:]
        del self._free[-count:]
        return taken

    def give(self, slots: list[int]) -> None:
        self._free.extend(slots)

    def check_integrity(self, held: list[int]) -> None:
        """Every slot is either free or in `held` (by the tree or by one sequence), exactly once."""
        everywhere = sorted([*self._free, *held])
        if everywhere != list(range(self.capacity)):
            missing = sorted(set(range(self.capacity)) - set(everywhere))
            raise AssertionError(
                f"KV slots do not add up: {len(self._free)} free + {len(held)} held of {self.capacity}; "
                f"leaked {missing[:8]}, counted twice: {len(everywhere) - len(set(everywhere))}"
            )
