"""Which of several workers are refused (their self-test fails, say), and whether the server can do without them."""

from __future__ import annotations


class Refusals:
    """Of `count` workers. While one is not refused it serves, or may yet: the refused ones stay down beside it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._refused: set[int] = set()

    def bearable(self, number: int) -> bool:
        """This worker is refused. False where so are all others: then there is nothing to wait for."""
        self._refused.add(number)
        return len(self._refused) < self._count

    def over(self, number: int) -> None:
        """This worker serves."""
        self._refused.discard(number)
