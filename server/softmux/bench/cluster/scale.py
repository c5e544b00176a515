"""softmux bench cluster --simulate: 100 GPUs and 1,000,000 adapters, by policy and load.

Service times are those of an H200 that serves an 8B in bfloat16 (docs/performance.md); fetches are bytes over a line
and the blob store's latency. Memories begin with the most popular adapters that would be there, and warm up from that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from softmux.bench.cluster.simulation import Adapters, Service, homes, simulate
from softmux.routing.policies import ConsistentHashing, LeastLoaded, Policy, RandomChoice, WarmFirst

H200_8B = Service(
    steps=((0, 4.56e-3), (1, 4.56e-3), (16, 5.13e-3), (64, 6.40e-3), (256, 13.53e-3)),
    prefill=256 * 23.1e-6,  # 8,188 tokens in 189 ms
)
KINDS = (
    Adapters("soft prompts: 20 vectors, 164 kB, 2 GB of host memory", 1_000_000, 13_000, 164e3),
    Adapters("LoRAs: rank 16, 84 MB, 64 GB of host memory", 1_000_000, 800, 84e6),
)
POLICIES: dict[str, Callable[[int], Policy]] = {
    "random": lambda fit: RandomChoice(Random(0)),  # noqa: S311
    "least loaded of two": lambda fit: LeastLoaded(Random(0)),  # noqa: S311
    "consistent hashing": lambda fit: ConsistentHashing(Random(0)),  # noqa: S311
    "… with bounded loads": lambda fit: ConsistentHashing(Random(0), balance=1.25, free=8),  # noqa: S311
    "warm first (softmux)": lambda fit: WarmFirst(Random(0), warm_keys=fit),  # noqa: S311
}
LOADS = (0.5, 0.7, 0.85)
SLO_SECONDS = 1.0
_BLIND = ("random", "least loaded of two")


@dataclass(frozen=True, slots=True)
class Point:
    kind: str
    policy: str
    load: float
    hits: float
    median: float
    high: float
    """Of the time to the first token, in seconds: the median and the 99th percentile."""
    fetched: float
    """Bytes a second from the blob store, all replicas together."""
    most_loaded: float


def points(gpus: int, requests: int, seed: int, loads: Sequence[float] = LOADS) -> list[Point]:
    names = [f"gpu-{number}" for number in range(gpus)]
    found = []
    for kind in KINDS:
        sys.stdout.write(f"{kind.name}: {kind.fit:,} a GPU\n")
        home = homes(kind.count, names)
        at_home = [np.flatnonzero(home == number)[: kind.fit][::-1].tolist() for number in range(gpus)]
        everywhere = [list(range(kind.fit - 1, -1, -1))] * gpus
        for load in loads:
            random = np.random.default_rng(seed)
            rate = load * gpus * H200_8B.capacity
            sent = requests + requests // 2  # the first third warms up
            chosen = kind.draw(sent, random)
            arrivals = np.cumsum(random.exponential(1 / rate, sent))
            for name, make in POLICIES.items():
                policy = make(kind.fit)
                kept = everywhere if name in _BLIND else at_home
                for place, held in zip(names, kept, strict=True):
                    for adapter in held:
                        policy.sent(f"task-{adapter}", place)
                measured = simulate(policy, H200_8B, kind, chosen, arrivals, names, kept, uncounted=sent - requests)
                median, high = np.percentile(measured.first_token, (50, 99)).tolist()
                hits = measured.hits / requests
                fetched = (1 - hits) * rate * kind.size
                found.append(Point(kind.name, name, load, hits, median, high, fetched, measured.most_loaded))
                _tell(found[-1])
    return found


def head() -> str:
    return f"{'':24} load   in memory   median    99 %   fetched GB/s   busiest"


def _tell(point: Point) -> None:
    times = f"{point.median * 1e3:6.0f} ms {point.high * 1e3:6.0f} ms"
    fetches = f"{point.fetched / 1e9:11.2f} {point.most_loaded:11.2f}"
    sys.stdout.write(f"{point.policy:24} {point.load:4.0%} {point.hits:10.1%} {times} {fetches}\n")
    sys.stdout.flush()


def best_loads(found: Sequence[Point]) -> dict[tuple[str, str], float]:
    """For each kind and policy the largest load at which 99 % of the first tokens came within a second; 0: none."""
    best: dict[tuple[str, str], float] = {}
    for point in found:
        good = point.load if point.high <= SLO_SECONDS else 0.0
        best[point.kind, point.policy] = max(good, best.get((point.kind, point.policy), 0.0))
    return best


def run(gpus: int, requests: int, seed: int, gpu_hour: float, plot: Path | None) -> dict[str, Any]:
    """Prints a table, draws where asked, and returns all figures."""
    out = sys.stdout
    out.write(f"{gpus} GPUs, {KINDS[0].count:,} adapters, Zipf 1; {H200_8B.capacity:.0f} requests/s a GPU at most\n")
    out.write(head() + "\n")
    found = points(gpus, requests, seed)
    out.write(f"\nlargest load with 99 % of first tokens within {SLO_SECONDS:g} s, and what a million requests cost\n")
    best = best_loads(found)
    for (kind, policy), load in best.items():
        cost = f"{gpu_hour / 3600 / (load * H200_8B.capacity) * 1e6:.1f}" if load else "–"
        out.write(f"{kind[:12]:12} {policy:24} {load:4.0%} {cost:>8}\n")
    if plot is not None:
        draw(plot, found)
    return {
        "points": [{name: getattr(point, name) for name in Point.__slots__} for point in found],
        "best_loads": {f"{kind} | {policy}": load for (kind, policy), load in best.items()},
    }


def draw(path: Path, found: Sequence[Point]) -> None:
    """Two columns, one for each kind: adapters in memory, and the 99th percentile of the first token, over the load."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "softmux"
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, len(KINDS), sharex=True)
    for column, kind in enumerate(KINDS):
        for name, marker in zip(POLICIES, "ovs^D", strict=True):
            row = [point for point in found if (point.kind, point.policy) == (kind.name, name)]
            loads = [point.load * 100 for point in row]
            panels[0][column].plot(loads, [point.hits * 100 for point in row], marker=marker, label=name)
            panels[1][column].plot(loads, [point.high for point in row], marker=marker, label=name)
        panels[0][column].set(title=kind.name, ylim=(0, 103), ylabel="adapter in memory, %")
        panels[1][column].axhline(SLO_SECONDS, color="black", linestyle=":", linewidth=1)
        panels[1][column].set(yscale="log", xlabel="load, % of what the GPUs can do", ylabel="first token, 99 %, s")
        for panel in panels[:, column]:
            panel.grid(alpha=0.3)
    panels[0][0].legend(fontsize=8, loc="lower left")
    for panel in panels.flat:
        panel.title.set_fontsize(9)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
