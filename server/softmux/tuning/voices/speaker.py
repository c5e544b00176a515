"""What stands before a row where it is asked: a task's learned tokens, an adapter's parts, a long text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Batch, Row


class Speaker(Protocol):
    """What makes a base's inputs of rows."""

    @property
    def prefix(self) -> int:
        """How many tokens' keys and values come before the input: those of a row's first ids."""

    def collate(self, rows: Sequence[Row]) -> Batch: ...

    def inputs(self, batch: Batch) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Bare:
    """The base alone."""

    base: Base

    @property
    def prefix(self) -> int:
        return 0

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.base.collate(rows)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return self.base.inputs(batch, self.base.model.get_input_embeddings()(batch.tokens))
