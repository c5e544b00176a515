"""The virtual vocabulary: learned vectors as rows of one table beside the model's embedding table."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch

from softmux.engine.device import to_device
from softmux.engine.transfer import Copies, Piece
from softmux.scheduler.radix import RootKey


class VirtualVocabulary:
    """`table` is `[rows, hidden]` in the model's dtype. A virtual id names (adapter, index); `rows_of` finds its row.

    `rows` is the budget: an adapter's vectors are copied in when a step needs them, into whatever rows are free, the
    least recently used adapter giving way; only a step that needs more than the table holds makes it grow. Sequences
    keep virtual ids, never rows, so eviction changes no request.
    """

    def __init__(self, rows: int, hidden: int, dtype: torch.dtype, device: torch.device, copies: Copies) -> None:
        self.table = torch.zeros((rows, hidden), dtype=dtype, device=device)
        self._copies = copies
        self._free = list(range(rows - 1, -1, -1))
        self._resident: OrderedDict[RootKey, list[int]] = OrderedDict()
        self._read: torch.cuda.Event | None = None
        self._mark_read()
        if device.type == "cuda":  # compiles what the copies need, so that no step waits for it
            nothing = torch.zeros((1, hidden), dtype=dtype, pin_memory=True)
            copies.scatter(self.table, 0, [Piece(nothing, 0, [0])], self._read)
        self.swaps = 0

    @property
    def resident(self) -> int:
        """Adapters whose vectors are in the table."""
        return len(self._resident)

    def rows_of(
        self, adapters: Iterable[RootKey], vectors: Callable[[RootKey], torch.Tensor]
    ) -> dict[RootKey, list[int]]:
        """The table rows of each adapter's vectors, in order. `vectors(adapter)` (`[k, hidden]`, in host memory) is
        asked for on a miss; all misses are copied in together, none of the adapters asked for gives way."""
        rows: dict[RootKey, list[int]] = {}
        missing: list[RootKey] = []
        for adapter in adapters:
            known = self._resident.get(adapter)
            if known is None:
                missing.append(adapter)
            else:
                self._resident.move_to_end(adapter)
                rows[adapter] = known
        if missing:
            values = [vectors(adapter) for adapter in missing]  # before any row is given: this may raise
            pieces = []
            for adapter, learned in zip(missing, values, strict=True):
                rows[adapter] = self._place(adapter, learned.shape[0], rows)
                pieces.append(Piece(learned, 0, rows[adapter]))
            self._copies.scatter(self.table, 0, pieces, self._read)
            self.swaps += len(missing)
        return rows

    def gather(self, rows: Sequence[int]) -> torch.Tensor:
        """`[len(rows), hidden]`: what those rows of the table hold."""
        return self.take(to_device(rows, self.table.device))

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """As `gather`, of rows whose numbers are on the device."""
        found = self.table[rows]
        self._mark_read()
        return found

    def forget(self, adapter: RootKey) -> None:
        self._free.extend(self._resident.pop(adapter, []))

    def _place(self, adapter: RootKey, count: int, keep: dict[RootKey, list[int]]) -> list[int]:
        while len(self._free) < count:
            victim = next((key for key in self._resident if key not in keep), None)
            if victim is None:
                self._grow(count)
            else:
                self._free.extend(self._resident.pop(victim))
        left = len(self._free) - count
        rows = self._free[left:][::-1]
        del self._free[left:]
        self._resident[adapter] = rows
        return rows

    def _grow(self, needed: int) -> None:
        size, hidden = self.table.shape
        more = max(size, needed)
        self.table = torch.cat([self.table, self.table.new_zeros((more, hidden))])
        self._mark_read()
        self._free.extend(range(size + more - 1, size - 1, -1))

    def _mark_read(self) -> None:
        """Rows may be given to others from here on, in the device's order: a step in flight reads its rows first of
        all, so a copy that waits for this waits for nothing in practice."""
        if self.table.is_cuda:
            self._read = torch.cuda.Event()
            self._read.record()

    def check_integrity(self) -> None:
        held = [row for rows in self._resident.values() for row in rows]
        assert sorted(held + self._free) == list(range(self.table.shape[0])), "rows of the table do not add up"
