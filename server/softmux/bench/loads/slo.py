"""A service level objective: what a request must keep to for its work to count as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softmux.bench.loads.outcome import Outcome
from softmux.errors import InvalidRequest

METRICS = ("ttft", "tpot", "e2el")


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in milliseconds, by metric. A request that failed never keeps to them; a reply of one token has no time
    per token and keeps to that limit, as in vLLM's bench."""

    limits: Mapping[str, float]

    def kept(self, outcome: Outcome) -> bool:
        if outcome.error is not None:
            return False
        return all((getattr(outcome, name) or 0.0) * 1e3 <= limit for name, limit in self.limits.items())


def parse_slo(words: Sequence[str]) -> Slo | None:
    """Reads `ttft:200 tpot:50 e2el:3000`, in milliseconds; no words, no objective."""
    limits: dict[str, float] = {}
    for word in words:
        name, _, limit = word.partition(":")
        try:
            value = float(limit)
        except ValueError:
            value = 0.0
        if name not in METRICS or not value > 0:
            wanted = ", ".join(METRICS)
            raise InvalidRequest(
                f"An objective is a metric ({wanted}) and milliseconds, such as ttft:200; not {word!r}.",
                param="goodput",
            )
        limits[name] = value
    return Slo(limits) if limits else None
