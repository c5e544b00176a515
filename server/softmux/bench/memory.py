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


@dataclass(slots=True)
class Growth:
    """Samples of one run. The first third is warm-up."""

    samples: list[Sample] = field(default_factory=list)

    def slope(self, what: str) -> float:
        """Least squares over what follows the warm-up, per 1,000 steps."""
        return slope([(sample.step / 1000, float(getattr(sample, what))) for sample in self.samples])

    def told(self) -> str:
        first, last = self.samples[len(self.samples) // 3], self.samples[-1]
        lines = []
        for what, unit in (("rss", "bytes"), ("cuda", "bytes"), ("objects", ""), ("tensors", "")):
            lines.append(
                f"{what:8} {getattr(first, what):>13,} after warm-up, {getattr(last, what):>13,} at the end; "
                f"{self.slope(what):+,.1f} {unit} per 1,000 steps".rstrip()
            )
        return "\n".join(lines)
