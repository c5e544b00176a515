"""Several workers' numbers as one worker's: what is counted adds up, and a state is summed, or is a share of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import msgspec

from softmux.telemetry.metrics import BY_NAME, Across
from softmux.worker.messages import Histogram, Stats

_HOW: dict[Across, Callable[[Sequence[float]], float]] = {"sum": sum, "mean": fmean, "max": max, "min": min}


def merged(several: Sequence[Stats]) -> Stats | None:
    """One `Stats` of all; None of none. What is said in words is the first's, lists of names apart."""
    if len(several) < 2:
        return several[0] if several else None
    return Stats(
        **_counts(several),
        gauges={name: _gauge(name, several) for name in dict.fromkeys(name for one in several for name in one.gauges)},
        infos={name: _words(name, several) for name in dict.fromkeys(name for one in several for name in one.infos)},
        queues=_queues(several),
    )


def counted(stats: Stats) -> Stats:
    """What of it stays true when its worker is no more."""
    return msgspec.structs.replace(stats, gauges={}, infos={}, queues={})


def with_counted(stats: Stats, gone: Stats) -> Stats:
    """`stats`, its counts on top of what its forerunners `counted`."""
    return msgspec.structs.replace(stats, **_counts([stats, gone]))


def _counts(several: Sequence[Stats]) -> dict[str, Any]:
    """The fields of a `Stats` that only ever add up."""
    return {
        "counters": _summed(stats.counters for stats in several),
        "histograms": _histograms(several),
        "labelled": {
            name: _summed(stats.labelled.get(name, {}) for stats in several)
            for name in dict.fromkeys(name for one in several for name in one.labelled)
        },
    }


def _gauge(name: str, several: Sequence[Stats]) -> float:
    values = [stats.gauges[name] for stats in several if name in stats.gauges]
    return _HOW[BY_NAME[name].across if name in BY_NAME else "sum"](values)


def _summed(several: Iterable[dict[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for values in several:
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _histograms(several: Sequence[Stats]) -> dict[str, Histogram]:
    total: dict[str, Histogram] = {}
    for stats in several:
        for name, more in stats.histograms.items():
            had = total.get(name)
            total[name] = more if had is None else _added(had, more)
    return total


def _added(one: Histogram, other: Histogram) -> Histogram:
    return Histogram(tuple(a + b for a, b in zip(one.counts, other.counts, strict=True)), one.sum + other.sum)


def _words(name: str, several: Sequence[Stats]) -> dict[str, str]:
    """The labels of an info: each replica's names in turn where they are lists by commas, else the first's."""
    said = [stats.infos[name] for stats in several if name in stats.infos]
    if name != "lora_requests_info":
        return said[0]
    words = {label: _in_turn([one[label].split(",") for one in said if one[label]]) for label in said[0]}
    return words | {"max_lora": str(sum(int(one["max_lora"]) for one in said))}


def _in_turn(lists: list[list[str]]) -> str:
    longest = max((len(names) for names in lists), default=0)
    return ",".join(dict.fromkeys(names[i] for i in range(longest) for names in lists if i < len(names)))


def _queues(several: Sequence[Stats]) -> dict[str, tuple[float, float]]:
    total: dict[str, tuple[float, float]] = {}
    for stats in several:
        for tenant, (cost, weight) in stats.queues.items():
            total[tenant] = total.get(tenant, (0.0, weight))[0] + cost, weight
    return total
