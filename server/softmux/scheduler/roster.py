"""Every sequence that has not ended, by the names its client gave, and by deadline."""

from __future__ import annotations

import itertools

from softmux.errors import InternalError
from softmux.scheduler.sequence import Sequence


class Roster:
    """`add` numbers the sequences in the order of their coming; `drop` takes out one that has ended."""

    def __init__(self) -> None:
        self._by_id: dict[tuple[bytes, str], Sequence] = {}
        self._order = itertools.count()
        self._dated: set[Sequence] = set()
        self._earliest = float("inf")
        """No later than any deadline in `_dated`, so that most steps need look at none."""

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, sequence: Sequence) -> None:
        """Raises `InternalError` where the client has one of that id already, and then has changed nothing."""
        key = (sequence.client, sequence.id)
        if key in self._by_id:
            raise InternalError(f"sequence {sequence.id} is already running")
        sequence.order = next(self._order)
        self._by_id[key] = sequence
        if sequence.deadline is not None:
            self._dated.add(sequence)
            self._earliest = min(self._earliest, sequence.deadline)

    def drop(self, sequence: Sequence) -> None:
        del self._by_id[sequence.client, sequence.id]
        self._dated.discard(sequence)

    def find(self, client: bytes, sequence_id: str) -> Sequence | None:
        return self._by_id.get((client, sequence_id))

    def of_client(self, client: bytes) -> list[Sequence]:
        return [sequence for (owner, _), sequence in self._by_id.items() if owner == client]

    def all(self) -> list[Sequence]:
        return list(self._by_id.values())

    def late(self, now: float) -> list[Sequence]:
        """Those whose deadline is `now` or before, in the order of their coming. For the caller to end."""
        if now < self._earliest:
            return []
        late = {s for s in self._dated if s.deadline is not None and s.deadline <= now}
        self._dated -= late
        self._earliest = min((s.deadline for s in self._dated if s.deadline is not None), default=float("inf"))
        return sorted(late, key=lambda sequence: sequence.order)
