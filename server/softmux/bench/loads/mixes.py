"""Which task a request is for: uniform or Zipf over the tasks, and a share for the bare model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from softmux.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class TaskMix:
    """Task `i` of `tasks` is asked for with probability ∝ 1/(i+1)^exponent (0: uniform), the bare model with
    probability `bare_share`, which is 1 where there are no tasks."""

    exponent: float = 0.0
    bare_share: float = 0.0

    def draw(self, count: int, tasks: int, draw: np.random.Generator) -> list[int | None]:
        """The task's number of each of `count` requests; None is the bare model."""
        if not tasks:
            return [None] * count
        weights = np.arange(1, tasks + 1, dtype=np.float64) ** -self.exponent
        chosen = draw.choice(tasks, size=count, p=weights / weights.sum())
        bare = draw.random(count) < self.bare_share
        return [None if without else int(task) for task, without in zip(chosen, bare, strict=True)]

    def words(self) -> str:
        kind = f"Zipf {self.exponent:g}" if self.exponent else "uniform"
        return f"{kind}, {self.bare_share:.0%} bare" if self.bare_share else kind


def parse_mix(text: str, bare_share: float = 0.0) -> TaskMix:
    """`uniform`, or `zipf:S` for exponent S (`zipf` alone: 1)."""
    kind, _, exponent = text.partition(":")
    if not 0 <= bare_share <= 1:
        raise InvalidRequest("The bare model's share is between 0 and 1.", param="bare-share")
    try:
        if kind == "uniform" and not exponent:
            return TaskMix(0.0, bare_share)
        if kind == "zipf" and (parsed := float(exponent or 1)) > 0:
            return TaskMix(parsed, bare_share)
    except ValueError:
        pass
    raise InvalidRequest(f"A task mix is uniform, zipf or zipf:S, not {text!r}.", param="task-mix")
