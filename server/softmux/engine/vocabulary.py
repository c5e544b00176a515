"""The virtual vocabulary: learned vectors as rows of one table beside the model's embedding table."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch

from softmux.engine.device import to_device
from softmux.scheduler.radix import RootKey


class VirtualVocabulary:
    """`table` is `[rows, hidden]` in the model's dtype. A virtual id names (adapter, index); `rows_of` finds its row.

    An adapter's vectors are copied in when a step needs them, into whatever rows are free, the least recently used
    adapter giving way; a step that needs more than the table holds makes it grow. Sequences keep virtual ids, never
    rows, so eviction changes no request.
    """

    def __init__(self, rows: int, hidden: int, dtype: torch.dtype, device: torch.device) -> None:
        self.table = torch.zeros((rows, hidden), dtype=dtype, device=device)
        self._free = list(range(rows - 1, -1, -1))
        self._resident: OrderedDict[RootKey, list[int]] = OrderedDict()
        self.swaps = 0

    @property
    def resident(self) -> int:
        """Adapters whose vectors are in the table."""
        return len(self._resident)

    def rows_of(self, adapter: RootKey, vectors: Callable[[], torch.Tensor], keep: set[RootKey]) -> list[int]:
        """The table rows of an adapter's vectors, in order. `vectors()` (`[k, hidden]`) is asked for on a miss;
        `keep` names adapters of the same step, which must stay."""
        rows = self._resident.get(adapter)
        if rows is not None:
            self._resident.move_to_end(adapter)
            return rows
        values = vectors()
        count = values.shape[0]
        while len(self._free) < count:
            victim = next((key for key in self._resident if key not in keep), None)
            if victim is None:
                self._grow(count)
            else:
                self._free.extend(self._resident.pop(victim))
        rows = [self._free.pop() for _ in range(count)]
        index = to_device(rows, self.table.device)
        self.table.index_copy_(0, index, values.to(self.table, non_blocking=True))
        self._resident[adapter] = rows
        self.swaps += 1
        return rows

    def forget(self, adapter: RootKey) -> None:
        self._free.extend(self._resident.pop(adapter, []))

    def _grow(self, needed: int) -> None:
        size, hidden = self.table.shape
        more = max(size, needed)
        self.table = torch.cat([self.table, self.table.new_zeros((more, hidden))])
        self._free.extend(range(size + more - 1, size - 1, -1))

    def check_integrity(self) -> None:
        held = [row for rows in self._resident.values() for row in rows]
        assert sorted(held + self._free) == list(range(self.table.shape[0])), "rows of the table do not add up"
