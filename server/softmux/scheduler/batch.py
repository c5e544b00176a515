"""What one step runs, and what it brought back."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import numpy as np

from softmux.scheduler.radix import RootKey
from softmux.scheduler.rows import Ints, Rows, RowTable, Step
from softmux.scheduler.sequence import Sequence
from softmux.types import TokenLogprobs


class Chunk(msgspec.Struct, frozen=True):
    """`count` tokens of the input of `sequence`, in the table's `row`, from position `start` on. `samples`: they are
    the last of it, and their last one's logits choose a token."""

    sequence: Sequence
    row: int
    start: int
    count: int
    samples: bool


@dataclass(slots=True, frozen=True)
class PrefixLoad:
    """Copy tokens `start … start + len(slots)` of an adapter's compiled prefix KV into `slots` before the step."""

    adapter: RootKey
    start: int
    slots: list[int]


@dataclass(slots=True, frozen=True)
class PrefixSave:
    """The step completes an adapter's leading virtual tokens in `slots`: keep their KV in the tiers after it."""

    adapter: RootKey
    slots: list[int]


def _no_rows() -> Step:
    return np.empty((4, 0), np.int32)


@dataclass
class Batch:
    """One packed forward pass: rows of any tenant, task, method and phase, laid end to end.

    The decoding rows come first, as columns; behind them the chunks of inputs, one by one. Arrays over rows are in
    that order (made when first asked for, once the batch is complete), and a row keeps its place in `table` until the
    step has been booked.
    """

    table: RowTable
    decodes: Step = field(default_factory=_no_rows)
    chunks: list[Chunk] = field(default_factory=list)
    loads: list[PrefixLoad] = field(default_factory=list)
    saves: list[PrefixSave] = field(default_factory=list)
    preempted: int = 0
    adapters: int = 0
    """How many different ones its rows run on."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.decodes[0]) + len(self.chunks)

    @property
    def tokens(self) -> int:
        return len(self.decodes[0]) + sum(chunk.count for chunk in self.chunks)

    @cached_property
    def rows(self) -> Rows:
        """The table's rows."""
        return self._with_chunks(self.decodes[1], [chunk.row for chunk in self.chunks])

    @cached_property
    def starts(self) -> Ints:
        """Each row's first position in this step."""
        return self._with_chunks(self.decodes[2], [chunk.start for chunk in self.chunks])

    @cached_property
    def counts(self) -> Ints:
        """How many tokens each row brings."""
        return self._with_chunks(np.ones_like(self.decodes[0]), [chunk.count for chunk in self.chunks])

    @cached_property
    def ends(self) -> Ints:
        """`starts` + `counts`."""
        return self.starts + self.counts if self.chunks else self.starts + 1

    @cached_property
    def sampled(self) -> Rows:
        """The table's rows that choose a token."""
        if not self.chunks:
            return self.rows
        return self._with_chunks(self.decodes[1], [chunk.row for chunk in self.chunks if chunk.samples])

    @cached_property
    def read(self) -> list[tuple[int, Chunk]]:
        """Of the rows of `sampled` those that are read instead of choosing a token: their places there."""
        ends = [chunk for chunk in self.chunks if chunk.samples]
        first = len(self.decodes[0])
        return [(first + i, chunk) for i, chunk in enumerate(ends) if chunk.sequence.reading is not None]

    @cached_property
    def choosing(self) -> Ints:
        """The places in `sampled` of the rows that do choose a token."""
        return np.delete(np.arange(len(self.sampled)), [place for place, _ in self.read])

    @cached_property
    def lengths(self) -> Ints:
        """By row that chooses a token: how many come before that token."""
        if not self.chunks:
            return self.ends
        return self._with_chunks(self.decodes[2] + 1, [c.start + c.count for c in self.chunks if c.samples])

    @staticmethod
    def _with_chunks(decodes: Step, chunks: list[int]) -> Ints:
        return np.concatenate([decodes, chunks]).astype(np.int64) if chunks else decodes.astype(np.int64)


@dataclass(slots=True, frozen=True)
class StepOutput:
    """By sampling row, in the batch's order: the token chosen, or −1 where the row's logits were not finite.
    `logprobs` has those of the rows that want them, `scores` what was read (float32, in this machine's byte order) of
    those that choose no token: theirs is 0. `stuck` says of rows whose grammar allowed no token why (theirs is −1)."""

    tokens: Ints
    logprobs: dict[int, TokenLogprobs] = field(default_factory=dict)
    scores: dict[int, bytes] = field(default_factory=dict)
    stuck: dict[int, str] = field(default_factory=dict)
