"""The seam between a step and the way its attention is computed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from softmux.engine.kv import KVPool
from softmux.scheduler.rows import Ints


@dataclass(slots=True)
class PackedRows:
    """The shape of one packed step, as every layer's attention sees it. Host lists; tensors are the backend's.

    Row i of the step: `counts[i]` new tokens at positions `starts[i] …`, packed one row after the other; its KV, new
    tokens included, lies in the first `starts[i] + counts[i]` entries of `table[table_rows[i]]`.
    """

    table_rows: list[int]
    starts: list[int]
    counts: list[int]
    table: torch.Tensor
    """`[max_rows + 1, context]` int32: the KV slot of each position of each running sequence."""
    slots: torch.Tensor
    """`[tokens]` int64: where each new token's keys and values go."""
    causal: bool = True
    """False: each new token attends to all of its row, those after it included. A row is then whole."""
    sources: Ints | None = None
    """On an encoder-decoder, `[rows, 2]`: which positions of each row are its encoder's input (`Sequence.source`)."""
    keys: list[int] | None = None
    """How many keys each row attends to, where they are not those up to its last new token."""

    def lengths(self) -> list[int]:
        """How many keys each row attends to."""
        if self.keys is not None:
            return self.keys
        return [start + count for start, count in zip(self.starts, self.counts, strict=True)]


@dataclass(slots=True)
class DecodeRows:
    """Rows of one new token each: `table_rows`, `positions` and `slots` `[rows]`, on the device."""

    table: torch.Tensor
    table_rows: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    splits: int


class AttentionBackend(ABC):
    """Writes a layer's new keys and values into the pool, then attends over each row's own KV, causally unless the step
    says otherwise (`PackedRows.causal`)."""

    name: str

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._slots = torch.empty(0, dtype=torch.int64, device=pool.device)
        """Where the step's new tokens go: each backend's `begin` says."""

    @property
    def pool(self) -> KVPool:
        return self._pool

    @abstractmethod
    def begin(self, rows: PackedRows) -> None:
        """Called once a step, before the first layer."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        window: int | None,
        softcap: float | None,
    ) -> torch.Tensor:
        """`query [tokens, heads, head_dim]`, `key`, `value [tokens, kv_heads, head_dim]` → `[tokens, heads, head_dim]`.

        `window` w: a position attends to itself and the w − 1 before it; where the step is not causal, to the w − 1
        after it, too. `softcap` c: scores become c·tanh(s/c).
        """
        self._pool.put(layer, self._slots.long(), key, value)
        return self.attend_written(layer, query, scaling=scaling, window=window, softcap=softcap)

    @abstractmethod
    def attend_written(
        self, layer: int, query: torch.Tensor, *, scaling: float, window: int | None, softcap: float | None
    ) -> torch.Tensor:
        """As `attend`, where the new tokens' keys and values are in the pool already."""
