"""When a call that failed is made again, and after how long."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from softmux.client.calls import Call
from softmux.client.errors import NoAnswer, UnexpectedAnswer, Unreachable
from softmux.errors import EngineDown, SoftmuxError

_OF_PROXIES = (429, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Retry:
    """At most `attempts` tries of a call, the waits between them in seconds.

    What the server says in `Retry-After` counts, else `first` doubled each time up to `longest`; a little chance is
    added, so that many clients don't come back at once. A server that says more than `longest` is not waited for.
    """

    attempts: int = 5
    first: float = 0.5
    longest: float = 30.0
    unreachable: bool = True
    """Whether a server that takes no connection is tried again."""
    chance: random.Random = field(default_factory=random.Random)

    def wait(self, call: Call, error: SoftmuxError, attempt: int) -> float | None:
        """Seconds until the next try, of which `attempt` (from 1) just failed; None: the error stands."""
        if attempt >= self.attempts or not self._may_repeat(call, error):
            return None
        backoff = min(self.longest, self.first * 2.0 ** (attempt - 1))
        if error.retry_after is None:
            return backoff * self.chance.uniform(0.5, 1.0)
        if error.retry_after > self.longest:
            return None
        return error.retry_after + backoff * self.chance.uniform(0.0, 0.5)

    def _may_repeat(self, call: Call, error: SoftmuxError) -> bool:
        """Whether a second try can't do what the first has done already."""
        match error:
            case Unreachable():
                return self.unreachable
            case NoAnswer():
                return call.idempotent
            case UnexpectedAnswer():
                return call.idempotent and error.answered in _OF_PROXIES
            case EngineDown() if not error.begun:
                return True
        return error.code in call.repeat
