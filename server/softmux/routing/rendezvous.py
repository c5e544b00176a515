"""Every key's own order of the replicas: highest random weight first (Thaler and Ravishankar, 1996).

Keys spread evenly, and when a replica joins or leaves, only those move that it now heads or that it headed: for each
key, the others stay in the order they had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

_CACHED = 1 << 16
"""Orders remembered at most. Beyond it all are forgotten, and those in use are there again at once."""
_MASK = (1 << 64) - 1


class Rendezvous:
    """Remembers orders, for as long as the replicas stay the same. Not thread-safe."""

    def __init__(self) -> None:
        self._salts: dict[str, int] = {}
        self._orders: dict[str, tuple[str, ...]] = {}

    def order(self, key: str, replicas: Collection[str]) -> tuple[str, ...]:
        """All of `replicas`, the key's home first. The same in every process for the same names."""
        if self._salts.keys() != set(replicas):
            self._salts = {replica: hashed(replica) for replica in sorted(replicas)}
            self._orders.clear()
        if (order := self._orders.get(key)) is None:
            if len(self._orders) >= _CACHED:
                self._orders.clear()
            number = hashed(key)
            order = tuple(sorted(self._salts, key=lambda replica: _mixed(number ^ self._salts[replica]), reverse=True))
            self._orders[key] = order
        return order


def hashed(name: str) -> int:
    """Eight bytes of BLAKE2b: the same in every process."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _mixed(number: int) -> int:
    """SplitMix64's last steps (Steele, Lea and Flood, OOPSLA 2014): each bit of `number` moves half of the result's."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)
