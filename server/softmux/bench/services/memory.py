"""What a process holds, sampled at rest, and whether it grows."""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

_STATM = Path("/proc/self/statm")


@dataclass(frozen=True, slots=True)
class Sample:
    """After `step` steps, with nothing running: bytes, and live objects."""

    step: int
    rss: int
    objects: int
    tensors: int
    cuda: int

    @classmethod
    def taken(cls, step: int) -> Sample:
        gc.collect()
        objects = gc.get_objects()
        tensors = sum(issubclass(type(thing), torch.Tensor) for thing in objects)
        cuda = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else 0
        return cls(step, resident_bytes(), len(objects), tensors, cuda)


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    if not _STATM.exists():
        return 0
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope(points: Sequence[tuple[float, float]]) -> float:
    """How much the second number grows with the first: least squares over the last two thirds of `points`. Before that,
    caches fill and allocators find their size."""
    kept = points[len(points) // 3 :]
    middle, level = sum(x for x, _ in kept) / len(kept), sum(y for _, y in kept) / len(kept)
    spread = sum((x - middle) ** 2 for x, _ in kept)
    return sum((x - middle) * (y - level) for x, y in kept) / spread if spread else 0.0


_ALLOWED = {"rss": 64 << 10, "cuda": 1 << 10, "objects": 10, "tensors": 1}
"""What may be added per 1,000 steps: 65 bytes a step are no leak of an engine that runs for weeks."""
_FEWEST = 4
"""Samples below which a slope is one of noise: of three, the first is warm-up, and two always lie on a line."""
_ENOUGH = 60_000
"""Steps over which warming up no longer looks like growth: a sound soak's bytes per 1,000 steps were 16 million over
1,000 steps, 25,000 over 20,000 and 5,000 over 60,000."""


@dataclass(slots=True)
class Growth:
    """Samples of one run. The first third is warm-up."""

    samples: list[Sample] = field(default_factory=list)

    def slope(self, what: str) -> float:
        """Least squares over what follows the warm-up, per 1,000 steps."""
        return slope([(sample.step / 1000, float(getattr(sample, what))) for sample in self.samples])

    def beyond(self) -> list[str]:
        """What grows by more than is allowed; nothing where the run was too short to tell."""
        if len(self.samples) < _FEWEST or self.samples[-1].step < _ENOUGH:
            return []
        return [
            f"{what} grows by {self.slope(what):,.1f} per 1,000 steps, where {most:,} are allowed"
            for what, most in _ALLOWED.items()
            if self.slope(what) >= most
        ]

    def told(self) -> str:
        if len(self.samples) < _FEWEST:
            return f"memory: {len(self.samples)} are too few samples to tell whether it grows"
        first, last = self.samples[len(self.samples) // 3], self.samples[-1]
        lines = []
        for what, unit in (("rss", "bytes"), ("cuda", "bytes"), ("objects", ""), ("tensors", "")):
            lines.append(
                f"{what:8} {getattr(first, what):>13,} after warm-up, {getattr(last, what):>13,} at the end; "
                f"{self.slope(what):+,.1f} {unit} per 1,000 steps".rstrip()
            )
        if last.step < _ENOUGH:
            lines.append(f"{last.step:,} steps are too few to tell growth from warming up: {_ENOUGH:,} are enough")
        return "\n".join(lines)
