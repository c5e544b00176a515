"""One token stream on its way through the engine."""

from __future__ import annotations

from dataclasses import dataclass, field

from softmux.scheduler.radix import Node, RootKey
from softmux.types import FinishReason, SamplingParams


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt and what has been generated after it. Only the scheduler changes it.

    `tokens` are ids, virtual ones negative; `lead` of them, at the front, are the adapter's leading virtual tokens.
    `computed` counts the tokens whose KV is in the cache or is being written by a step already scheduled, and `slots`
    names where; the first `shared` of those slots belong to the tree (down to `node`), the rest to this sequence.
    """

    id: str
    client: bytes
    root: RootKey
    tokens: list[int]
    sampling: SamplingParams
    arrival: float
    order: int = 0
    sample: int = 0
    deadline: float | None = None

    prompt_length: int = field(init=False)
    lead: int = field(init=False)
    computed: int = 0
    slots: list[int] = field(default_factory=list)
    node: Node | None = None
    shared: int = 0
    cached: int = -1
    row: int = -1
    pending: int = 0
    """Tokens sampled by steps in flight, not yet known here."""
    finished: FinishReason | None = None
    first_scheduled: float | None = None
    preemptions: int = 0
    admissions: int = 0
    """Times it has entered the running ones: its slots are new each time."""

    def __post_init__(self) -> None:
        self.prompt_length = len(self.tokens)
        self.lead = next((i for i, token in enumerate(self.tokens) if token >= 0), len(self.tokens))

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def adapter(self) -> RootKey | None:
        """The adapter's key in the tiers, None for the bare model."""
        return self.root if self.root.digest is not None else None

    @property
    def decoding(self) -> bool:
        """Only the newest token's KV is missing."""
        return self.computed >= len(self.tokens) - 1 + self.pending and self.generated + self.pending > 0
