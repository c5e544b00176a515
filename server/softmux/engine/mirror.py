"""The device's copy of the scheduler's slot table, and how much of it is written."""

from __future__ import annotations

import numpy as np
import torch

from softmux.engine.layout import ranges
from softmux.scheduler.batch import Batch
from softmux.scheduler.rows import Ints


class TableMirror:
    """`slots` is `[max_rows + 1, context]` int32 on the device: where each running sequence's KV lies, by position. A
    step adds only what is new; the last row is padding's, all `spare`."""

    def __init__(self, max_rows: int, context: int, spare: int, device: torch.device) -> None:
        self.slots = torch.full((max_rows + 1, context), spare, dtype=torch.int32, device=device)
        self._seats = np.full(max_rows, -1, np.int64)
        """Whose entries these are, as `RowTable.seats` numbers it."""
        self._written = np.zeros(max_rows, np.int64)

    def forget(self) -> None:
        """Everything is written anew from here on."""
        self._seats.fill(-1)

    def lacks_only_newest(self, batch: Batch) -> bool:
        """Whether every row decodes, and only the entry of its new token is missing."""
        if batch.chunks:
            return False
        rows = batch.rows
        known = (self._written[rows] == batch.starts) & (self._seats[rows] == batch.table.seats[rows])
        return bool(known.all())

    def missing(self, batch: Batch) -> tuple[Ints, Ints, Ints]:
        """Table rows, positions and slots of the entries to be written before the step can read its rows."""
        table, rows = batch.table, batch.rows
        begins = np.where(self._seats[rows] == table.seats[rows], self._written[rows], 0)
        counts = batch.ends - begins
        at_row, positions = np.repeat(rows, counts), ranges(begins, counts)
        return at_row, positions, table.slots[at_row, positions].astype(np.int64)

    def wrote(self, batch: Batch) -> None:
        """The device has been told of all of the batch's entries."""
        rows = batch.rows
        self._written[rows] = batch.ends
        self._seats[rows] = batch.table.seats[rows]
