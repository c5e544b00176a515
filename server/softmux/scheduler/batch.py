"""What one step runs, and what it brought back."""

from __future__ import annotations

from dataclasses import dataclass, field

from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import TokenLogprobs


@dataclass(slots=True, frozen=True)
class Row:
    """`count` tokens of `sequence` from position `start` on. `samples`: its last token's logits choose the next token.

    `future`: the (only) token is the one the step before is still choosing; the engine has it on the device.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    future: bool = False


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


@dataclass(slots=True)
class Batch:
    """One packed forward pass: rows of any tenant, task, method and phase, laid end to end."""

    rows: list[Row] = field(default_factory=list)
    loads: list[PrefixLoad] = field(default_factory=list)
    saves: list[PrefixSave] = field(default_factory=list)
    preempted: int = 0

    @property
    def tokens(self) -> int:
        return sum(row.count for row in self.rows)


@dataclass(slots=True, frozen=True)
class StepOutput:
    """By sampling row, in the batch's order: the token chosen, or -1 where the row's logits were not finite."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
