"""The running sequences as columns: what every step reads and writes of them, an array element for each.

A step in which all rows decode is a few operations on whole columns; a `Sequence` is looked at only when something
happens to it. What a step needs to know of a row has its column here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from softmux.scheduler.numbering import Numbering
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.slots import Slots

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rows = Ints
"""Numbers of rows of the table."""
Step = npt.NDArray[np.int32]
"""`[4, rows]`, for rows of one token each: its id (−1: the one the step before is choosing), table row, position, KV
slot. Just as a decode graph takes it."""

_NEVER = int(np.iinfo(np.int64).max)


@dataclass(slots=True, frozen=True)
class Said:
    """What became of a step's choices, by sampling row."""

    stops: Bools
    """The token was an end token that ends the sequence; it is not part of the text."""
    special: Bools
    """There is more to tell than a token: its first, its end, or that its logits were not finite."""


class RowTable:
    """A sequence has a row from `seat` to `unseat`, and keeps it between. All columns are `[max_rows]`.

    `tokens` and `slots` are `[max_rows, context]` int32: a row's known token ids, and the KV slot of each position
    computed or scheduled; the device's slot table mirrors the latter. Memory is touched only as far as rows reach.
    """

    def __init__(self, max_rows: int, context: int) -> None:
        self.context = context
        self.tokens: Slots = np.zeros((max_rows, context), np.int32)
        self.slots: Slots = np.zeros((max_rows, context), np.int32)
        self._flat_tokens, self._flat_slots = self.tokens.reshape(-1), self.slots.reshape(-1)
        self.seats = self._column(-1)
        """Which seating this is: no two are the same, so whoever mirrors the table knows when to begin anew."""
        self.orders = self._column()
        """`Sequence.order`: the number by which the sequence goes outside."""
        self.accounts = self._column()
        """`Sequence.account`: whom its tokens are charged to."""
        self.places = np.zeros(max_rows)
        """The first of `Sequence.place`: less goes before more of the same tenant's, the lower order where equal."""
        self.clients = self._column()
        self.adapters = self._column(-1)
        """The adapter's number while any row runs on it, −1 for the bare model."""
        self.deltas = self._column(-1)
        """The slot of what the row's adapter changes of the base, −1 where that is nothing."""
        self.sources: Ints = np.zeros((max_rows, 2), np.int64)
        """`Sequence.source`: first and end; both 0 where there is none."""
        self.contents = self._column()
        self.versions = self._column()
        """`Sequence.content` and `Sequence.version`."""
        self.prompts = self._column()
        self.known = self._column()
        """Length of what is known: the prompt, and what was generated."""
        self.computed = self._column()
        self.pending = self._column()
        """Tokens that steps in flight choose."""
        self.flights = self._column()
        """Steps in flight that write to the row's slots."""
        self.ends = self._column()
        """The length at which `max_tokens` is reached."""
        self.stops_from = self._column()
        """From which length on an end token ends the row."""
        self.plain_from = self._column()
        """From which length on the next token is the likeliest, and nothing else is asked for."""
        self.history = np.zeros(max_rows, np.bool_)
        """The choice of a token depends on all before it: never scheduled while one is pending."""
        self.guided = np.zeros(max_rows, np.bool_)
        """A grammar says which tokens may come."""
        self.decodes = np.zeros(max_rows, np.bool_)
        self.ended = np.zeros(max_rows, np.bool_)
        """Finished, but a step in flight still writes to its slots."""
        self.seated = np.zeros(max_rows, np.bool_)
        self.sequences = np.full(max_rows, None, np.object_)
        self._clients: Numbering[bytes] = Numbering()
        self._adapters: Numbering[RootKey] = Numbering()
        self._free = list(range(max_rows - 1, -1, -1))
        self._seatings = itertools.count()

    def _column(self, value: int = 0) -> Ints:
        return np.full(len(self.tokens), value, np.int64)

    @property
    def free(self) -> int:
        """Rows without a sequence."""
        return len(self._free)

    @property
    def taken(self) -> int:
        return len(self.tokens) - len(self._free)

    def running(self) -> list[Sequence]:
        """The seated sequences, in the order of their seating."""
        rows = np.flatnonzero(self.seated)
        found: list[Sequence] = self.sequences[rows[np.argsort(self.seats[rows])]].tolist()
        return found

    def oldest(self) -> int:
        """The row of the sequence that came before all others that have one. There is one."""
        rows = np.flatnonzero(self.seated)
        return int(rows[self.orders[rows].argmin()])

    # --- coming and going --------------------------------------------------------------------------------------------

    def seat(self, sequence: Sequence, delta: int = -1) -> None:
        """Gives a sequence a row: nothing of it is computed yet. `delta` is its slot in `deltas`."""
        row, sampling = self._free.pop(), sequence.sampling
        known, prompt = sequence.length, sequence.prompt_length
        self.tokens[row, :known] = sequence.spelled(known)
        self.seats[row] = next(self._seatings)
        self.orders[row] = sequence.order
        self.accounts[row] = sequence.account
        self.places[row] = sequence.place[0]
        self.clients[row] = self._clients.hold(sequence.client)
        self.adapters[row] = self._adapters.hold(sequence.root) if sequence.adapter is not None else -1
        self.deltas[row] = delta
        if sequence.source is not None or self.sources[row, 1]:
            self.sources[row] = sequence.source or (0, 0)
        self.contents[row], self.versions[row] = sequence.content, sequence.version
        self.prompts[row] = prompt
        self.known[row] = known
        self.computed[row] = self.pending[row] = self.flights[row] = 0
        self.ends[row] = prompt + sampling.max_tokens
        least = prompt + sampling.min_tokens
        self.stops_from[row] = _NEVER if sampling.ignore_eos else least
        self.plain_from[row] = _NEVER if not sampling.plain else 0 if sampling.ignore_eos else least
        self.history[row] = sampling.needs_history
        self.guided[row] = sequence.guide is not None
        self.decodes[row] = self.ended[row] = False
        self.seated[row] = True
        self.sequences[row] = sequence
        sequence.table, sequence.row = self, row

    def unseat(self, sequence: Sequence) -> None:
        """Takes a sequence's row back. What it has generated goes with it; no step in flight may write to its slots."""
        row = sequence.row
        assert not self.flights[row], "a row is given up while a step writes to it"
        prompt, known = sequence.prompt_length, int(self.known[row])
        sequence.said = self.tokens[row, prompt:known].tolist() if known > prompt else []
        sequence.table, sequence.row = None, -1
        self._clients.drop(sequence.client)
        if sequence.adapter is not None:
            self._adapters.drop(sequence.root)
        self.seated[row] = self.decodes[row] = self.ended[row] = False
        self.sequences[row] = None
        self._free.append(row)

    # --- a step ------------------------------------------------------------------------------------------------------

    def ready(self) -> Rows:
        """The rows that can decode in the next step."""
        ready = self.decodes & (self.known + self.pending < self.ends)
        ready &= ~(self.history & (self.pending > 0))
        return np.flatnonzero(ready)

    def decode(self, rows: Rows, slots: Slots) -> Step:
        """Schedules one more token of each of `rows`, to be written into `slots`."""
        positions = self.computed[rows]
        at = rows * self.context + positions
        step = np.empty((4, len(rows)), np.int32)
        step[0] = self._flat_tokens[at]
        step[0, positions >= self.known[rows]] = -1
        step[1], step[2], step[3] = rows, positions, slots
        self._flat_slots[at] = slots
        self.computed[rows] = positions + 1
        self.pending[rows] += 1
        self.flights[rows] += 1
        return step

    def extend(self, row: int, slots: Slots | list[int], start: int) -> None:
        """The row's tokens from `start` on, its next ones, lie in `slots`, or will."""
        end = start + len(slots)
        self.slots[row, start:end] = slots
        self.computed[row] = end

    def chunk(self, row: int) -> bool:
        """Schedules a step over what `extend` added; whether it ends the row's input, so that it chooses a token."""
        self.flights[row] += 1
        last = bool(self.computed[row] == self.known[row])
        if last:
            self.pending[row] += 1
            self.decodes[row] = True
        return last

    def land(self, rows: Rows, sampled: Rows) -> None:
        """A step over `rows` has ended; `sampled` of them have chosen a token."""
        self.flights[rows] -= 1
        self.pending[sampled] -= 1

    def say(self, rows: Rows, tokens: Ints, eos: Iterable[int]) -> Said:
        """Books the token that each of `rows` has chosen, −1 where its logits were not finite."""
        lengths = self.known[rows]
        stops = np.zeros(len(rows), np.bool_)
        for token in eos:
            stops |= tokens == token
        stops &= lengths >= self.stops_from[rows]
        lost = tokens < 0
        self._flat_tokens[rows * self.context + lengths] = tokens  # counts only where `known` grows
        after = lengths + ~(stops | lost | self.ended[rows])
        self.known[rows] = after
        return Said(stops, stops | lost | (lengths == self.prompts[rows]) | (after >= self.ends[rows]))

    def distinct_adapters(self, rows: Rows) -> int:
        """How many adapters `rows` run on; the bare model is none."""
        return int(np.count_nonzero(np.bincount(self.adapters[rows] + 1)[1:]))

    def check_integrity(self) -> None:
        """Rows are free or seated, each once, and their columns fit the sequences they belong to."""
        running = {int(row): self.sequences[row] for row in np.flatnonzero(self.seated)}
        assert sorted([*self._free, *running]) == list(range(len(self.tokens))), "rows do not add up"
        assert len(self._clients) == len({s.client for s in running.values()})
        assert len(self._adapters) == len({s.root for s in running.values() if s.adapter is not None})
        for row, sequence in running.items():
            assert (sequence.table, sequence.row) == (self, row)
            assert self.tokens[row, : sequence.prompt_length].tolist() == sequence.prompt
            assert (self.orders[row], self.prompts[row]) == (sequence.order, sequence.prompt_length)
            assert self.accounts[row] == sequence.account
            assert sequence.prompt_length <= self.known[row] <= self.ends[row] <= self.context
            assert 0 <= self.pending[row] <= self.flights[row], "tokens are awaited from no step"
            assert self.computed[row] <= self.known[row] + self.pending[row]
            assert sequence.shared <= self.computed[row]
            assert (sequence.finished is not None) == bool(self.ended[row])
        assert not ((self.decodes | self.ended) & ~self.seated).any(), "a row without a sequence decodes"
