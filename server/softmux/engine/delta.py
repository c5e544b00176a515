"""What an adapter changes of the base for its own rows: low-rank updates of linear modules, rows of token tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np
import torch

from softmux.engine.arena import Empty, pageable
from softmux.formats.parts import LoraPart, Parts, TokenRowsPart

UNIT = 16
"""Every piece begins at a multiple of so many numbers, so that kernels may read it in whole words."""


class LowRank(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The update of the module `name`: `a [rank, inputs]` begins at `at` in `Delta.data`, `b [rank, outputs]`, with the
    scaling in it, at `b_at`. The module's output gains `(x · aᵀ) · b`."""

    name: str
    rank: int
    inputs: int
    outputs: int
    at: int
    b_at: int


class TokenTable(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Rows of the tokens `ids`, `[len(ids), width]` from `at` on, in place of the table's that is named by `side`."""

    side: Literal["input", "output", "both"]
    ids: tuple[int, ...]
    width: int
    at: int


class Delta(msgspec.Struct, eq=False, frozen=True, dict=True):
    """`data`: one dimension, in the model's dtype, all pieces one behind the other."""

    data: torch.Tensor
    updates: tuple[LowRank, ...] = ()
    tables: tuple[TokenTable, ...] = ()

    @classmethod
    def of(cls, parts: Parts, dtype: torch.dtype, empty: Empty = pageable) -> Delta | None:
        """None where the parts change nothing of the base."""
        updates: list[LowRank] = []
        tables: list[TokenTable] = []
        pieces: list[tuple[int, np.ndarray]] = []
        size = 0

        def place(array: np.ndarray) -> int:
            nonlocal size
            at = size
            pieces.append((at, array))
            size += -(-array.size // UNIT) * UNIT
            return at

        for part in parts:
            match part:
                case LoraPart():
                    for name, layer in part.layers.items():
                        inputs, outputs = layer.a.shape[1], layer.b.shape[0]
                        a_at, b_at = place(layer.a), place(layer.b.T * np.float32(layer.scaling))
                        updates.append(LowRank(name, layer.rank, inputs, outputs, a_at, b_at))
                case TokenRowsPart():
                    at = place(part.vectors)
                    tables.append(TokenTable(part.at, part.ids, part.vectors.shape[1], at))
                case _:
                    pass
        if not pieces:
            return None
        data = empty((size,), dtype).zero_()
        for at, array in pieces:
            data[at : at + array.size] = torch.from_numpy(np.ascontiguousarray(array)).view(-1)
        return cls(data, tuple(updates), tuple(tables))

    def over(self, data: torch.Tensor) -> Delta:
        """The same, held elsewhere."""
        return Delta(data, self.updates, self.tables)

    @cached_property
    def by_module(self) -> Mapping[str, LowRank]:
        return {update.name: update for update in self.updates}

    @property
    def largest_rank(self) -> int:
        return max((update.rank for update in self.updates), default=0)

    def a(self, update: LowRank) -> torch.Tensor:
        """`[rank, inputs]`."""
        return self.data[update.at : update.at + update.rank * update.inputs].view(update.rank, update.inputs)

    def b(self, update: LowRank) -> torch.Tensor:
        """`[rank, outputs]`, times the scaling."""
        return self.data[update.b_at : update.b_at + update.rank * update.outputs].view(update.rank, update.outputs)

    def rows(self, table: TokenTable) -> torch.Tensor:
        """`[len(ids), width]`."""
        return self.data[table.at : table.at + len(table.ids) * table.width].view(len(table.ids), table.width)

    def tables_at(self, side: Literal["input", "output"]) -> Iterable[TokenTable]:
        return (table for table in self.tables if table.side in (side, "both"))
