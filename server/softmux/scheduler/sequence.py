"""One token stream on its way through the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from softmux.scheduler.radix import Node, RootKey
from softmux.scheduler.reading import Reading
from softmux.types import FinishReason, SamplingParams

if TYPE_CHECKING:
    from softmux.scheduler.rows import RowTable


PRIORITY_SECONDS = 60.0
"""A level of priority counts as much as having come so much earlier: what is passed over is passed over for so long."""


def lead_of(tokens: Iterable[int]) -> int:
    """How many virtual tokens a row begins with."""
    lead = 0
    for token in tokens:
        if token >= 0:
            break
        lead += 1
    return lead


Place = tuple[float, int]
"""Where a sequence stands among its tenant's: less is earlier."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been generated after it. Only the scheduler changes it.

    `prompt` are ids, virtual ones negative; `lead` of them, at the front, are the adapter's leading virtual tokens.
    While it runs, its tokens, slots and counts are the columns of its row in `table`, and the properties here look
    there; `said` holds what it has generated whenever it has no row.
    """

    id: str
    client: bytes
    root: RootKey
    prompt: list[int]
    sampling: SamplingParams
    arrival: float
    order: int = 0
    sample: int = 0
    deadline: float | None = None
    reading: Reading | None = None
    """What is read of it, where it chooses no tokens."""
    source: tuple[int, int] | None = None
    """On an encoder-decoder: the positions `first … end`, the latter not included, that are its encoder's input. Before
    them lies a trained prefix of the decoder's, behind them what the decoder begins with and generates."""
    priority: int = 0
    """Higher goes before lower among its tenant's, and among no others."""
    weight: float = 1.0
    """Its tenant's: a tenant of weight 2 is due twice as much as one of weight 1."""
    account: int = 0
    """Its tenant's number in `VirtualTokenCounters`, while the scheduler has it."""
    content: int = 0
    version: int = 0
    """What `softmux.marks` says of it, for the flight recorder."""

    task: str = ""
    """The task that its time is booked to, beside the tenant."""
    method: str = "base"
    """Its adapter's, for who counts rows by it."""

    guide: object | None = None
    """Where a grammar says which tokens may come: how far the engine has followed it."""

    closes: bool = False
    """Where `max_tokens` alone ends it, its last token is an end token that nothing but the length has chosen."""

    prompt_length: int = field(init=False)
    lead: int = field(init=False)
    adapter: RootKey | None = field(init=False)
    """The adapter's key in the tiers, None for the bare model."""
    alone: bool = field(init=False)
    """Whether the cache may hold nothing of it but a trained prefix."""
    whole: tuple[int, int] = field(init=False)
    """From where to where its tokens run in one step, and are computed whatever the cache has: an encoder's input with
    the first token of its decoder behind it, or what is read of it; `(0, 0)` where that is nothing."""
    said: list[int] = field(default_factory=list)
    table: RowTable | None = None
    row: int = -1
    node: Node | None = None
    shared: int = 0
    """How many of its slots, from the first on, belong to the tree (down to `node`); those behind are its own."""
    cached: int = -1
    finished: FinishReason | None = None
    first_scheduled: float | None = None
    preemptions: int = 0

    def __post_init__(self) -> None:
        self.prompt_length = length = len(self.prompt)
        self.lead = lead_of(self.prompt)
        self.adapter = self.root if self.root.digest is not None else None
        source, reading = self.source, self.reading
        self.alone = source is not None or (reading is not None and reading.alone)
        self.whole = (0, 0)
        if reading is not None:
            self.whole = reading.whole_from, length
        elif source is not None:
            self.whole = source[0], source[1] + 1

    @property
    def place(self) -> Place:
        return self.arrival - PRIORITY_SECONDS * self.priority, self.order

    @property
    def reusable(self) -> int:
        """How many of its tokens need not be computed if the cache has them: the others' hidden states are needed."""
        begin, end = self.whole
        most = self.length - 1
        return min(most, begin) if end else most

    @property
    def length(self) -> int:
        """Tokens known: the prompt's, and those generated."""
        return int(self.table.known[self.row]) if self.table is not None else self.prompt_length + len(self.said)

    @property
    def generated(self) -> int:
        return self.length - self.prompt_length

    @property
    def tokens(self) -> list[int]:
        """All that is known, as a new list."""
        if self.table is None:
            return [*self.prompt, *self.said]
        known: list[int] = self.table.tokens[self.row, : self.length].tolist()
        return known

    def spelled(self, end: int) -> list[int]:
        """A list that begins with `tokens[:end]`: the prompt itself, not to be changed, where it reaches so far."""
        return self.prompt if end <= self.prompt_length else self.tokens

    @property
    def computed(self) -> int:
        """Tokens whose KV is in the cache, or is being written by a step already scheduled."""
        return int(self.table.computed[self.row]) if self.table is not None else 0

    @property
    def slots(self) -> list[int]:
        """Where that KV lies, by position."""
        return self.table.slots[self.row, : self.computed].tolist() if self.table is not None else []

    @property
    def pending(self) -> int:
        """Tokens sampled by steps in flight, not yet known here."""
        return int(self.table.pending[self.row]) if self.table is not None else 0

    @property
    def decoding(self) -> bool:
        """Its whole input has been scheduled: from here on it brings one token a step."""
        return bool(self.table.decodes[self.row]) if self.table is not None else False
