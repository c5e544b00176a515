"""What one process has counted, as it travels to the process that is asked for the sum of all."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec


class Sample(msgspec.Struct, frozen=True, array_like=True):
    """A series of Prometheus' text format, as `softmux_requests_total{task="a",outcome="ok"} 3`."""

    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


Samples = tuple[Sample, ...]


def summed(several: Iterable[Samples]) -> Samples:
    """Each series once, its values added up. Right for counters and histograms, which are all that processes count."""
    totals: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for samples in several:
        for sample in samples:
            key = (sample.name, sample.labels)
            totals[key] = totals.get(key, 0.0) + sample.value
    return tuple(Sample(name, labels, value) for (name, labels), value in totals.items())
