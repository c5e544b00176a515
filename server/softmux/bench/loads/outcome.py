"""What became of one request."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in seconds from the run's start.

    `due` is when the request was to be sent, `sent` when it was, `ended` when its last token was there. `events` are
    the times at which something was there to read, each one or several tokens; empty for a reply that came whole.
    `error` is the code of what went wrong, None where all went well.
    """

    due: float
    sent: float
    ended: float
    events: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    tokens: int = 0
    error: str | None = None

    @property
    def ttft(self) -> float | None:
        """Time to first token."""
        return self.events[0] - self.sent if self.events else None

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first; None where there is none after it."""
        if not self.events or self.tokens < 2:
            return None
        return (self.ended - self.events[0]) / (self.tokens - 1)

    @property
    def e2el(self) -> float:
        """End-to-end latency."""
        return self.ended - self.sent
