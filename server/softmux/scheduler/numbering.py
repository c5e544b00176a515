"""Small numbers for keys, so that a column of an array can hold what is not a number."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Numbering(Generic[K]):
    """A key has a number from its first `hold` to its last `drop`; numbers are used again, so they stay below the most
    keys ever held at once."""

    def __init__(self) -> None:
        self._numbers: dict[K, int] = {}
        self._holds: dict[K, int] = {}
        self._free: list[int] = []

    def __len__(self) -> int:
        """Keys that are held."""
        return len(self._numbers)

    def hold(self, key: K) -> int:
        if key not in self._numbers:
            self._numbers[key] = self._free.pop() if self._free else len(self._numbers)
        self._holds[key] = self._holds.get(key, 0) + 1
        return self._numbers[key]

    def drop(self, key: K) -> None:
        self._holds[key] -= 1
        if not self._holds[key]:
            del self._holds[key]
            self._free.append(self._numbers.pop(key))
