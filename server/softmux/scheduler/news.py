"""What a step brought its sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softmux.scheduler.rows import Ints, Rows, RowTable
from softmux.scheduler.sequence import Sequence
from softmux.types import FinishReason, Output, TokenLogprobs


@dataclass(slots=True, frozen=True)
class PlainTokens:
    """One new token of each of these sequences, and nothing else to tell of them."""

    sequences: npt.NDArray[np.object_]
    numbers: Ints
    """`Sequence.order` of each."""
    clients: Ints
    """Equal where the sequences' clients are."""
    tokens: Ints

    @classmethod
    def of(cls, table: RowTable, rows: Rows, tokens: Ints) -> PlainTokens:
        return cls(table.sequences[rows], table.orders[rows], table.clients[rows], tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def by_client(self) -> Iterator[tuple[bytes, Ints, Ints]]:
        """For each client its sequences' numbers, and their tokens."""
        if not len(self):
            return
        if (self.clients == self.clients[0]).all():
            yield self.sequences[0].client, self.numbers, self.tokens
            return
        for client in np.unique(self.clients):
            mine = np.flatnonzero(self.clients == client)
            yield self.sequences[mine[0]].client, self.numbers[mine], self.tokens[mine]

    def each(self) -> Iterator[tuple[Sequence, Output]]:
        """One by one, for whoever has no use for columns."""
        for sequence, token in zip(self.sequences.tolist(), self.tokens.tolist(), strict=True):
            yield sequence, Output(id=sequence.id, number=sequence.order, tokens=(token,))


@dataclass(slots=True)
class News:
    """`outputs` of the rows with more to tell than a token (a first one, an end, log probabilities), and the rest."""

    outputs: list[tuple[Sequence, Output]]
    plain: PlainTokens

    def each(self) -> Iterator[tuple[Sequence, Output]]:
        """All rows' news, one by one."""
        yield from self.outputs
        yield from self.plain.each()


def tell(
    sequence: Sequence, token: int, *, stopped: bool, logprobs: TokenLogprobs | None, now: float, scores: bytes = b""
) -> tuple[Output, FinishReason | None]:
    """What is to be told of a token that has just been booked (−1: the row's logits were not finite), and why the
    sequence ends with it, if it does. `stopped`: it was an end token, and is no part of the text. A sequence that is
    read says `scores` instead, and has ended."""
    reason: FinishReason | None = None
    if token < 0:
        reason = "abort"
    elif stopped and sequence.closes and sequence.generated + 1 >= sequence.sampling.max_tokens:
        reason = "length"
    elif stopped or sequence.reading is not None:
        reason = "stop"
    elif sequence.generated >= sequence.sampling.max_tokens:
        reason = "length"
    text = token >= 0 and not stopped and sequence.reading is None
    first = token >= 0 and (sequence.reading is not None or sequence.generated == (1 if text else 0))
    told = Output(
        id=sequence.id,
        number=sequence.order,
        tokens=(token,) if text else (),
        finish_reason=reason,
        cached_tokens=sequence.cached if first else 0,
        queue_seconds=(sequence.first_scheduled or now) - sequence.arrival if first else 0.0,
        prefill_seconds=now - (sequence.first_scheduled or now) if first else 0.0,
        preemptions=sequence.preemptions if reason is not None else 0,
        logprobs=(logprobs,) if logprobs is not None and text else (),
        scores=scores,
    )
    return told, reason
