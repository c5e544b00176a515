"""Thousands of tasks, room for fewer: throughput, hit rates and latency as their number crosses GPU, host and disk.

Random weights and random learned prompts, in this process: `softmux bench residency --shape 1b`. Every task is on disk
before; a task's later uses find it where room and the others' uses have left it. The bare model runs the same lengths
between two slices of theirs; what tasks reach of it is the median over the slices.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from softmux.bench.device.crossing import LEAST_REQUESTS, MIXES, Bench, Load, Room, crossing
from softmux.bench.device.rates import name_of
from softmux.engine.engine import pick_device

SIZES = (16, 256, 2000, 5000, 10000, 20000, 50000)


@dataclass(frozen=True, slots=True)
class Added:
    """Milliseconds of one median beyond another, with a bootstrapped 95 % interval."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: list[float], beyond: list[float]) -> Added | None:
        """None where either has no value."""
        if not times or not beyond:
            return None
        draw = np.random.default_rng(0)
        a, b = np.array(times) * 1e3, np.array(beyond) * 1e3
        spread = [float(np.median(draw.choice(a, a.size)) - np.median(draw.choice(b, b.size))) for _ in range(2000)]
        low, high = np.percentile(spread, (2.5, 97.5)).tolist()
        return cls(float(np.median(a) - np.median(b)), low, high)


def draw_plot(path: Path, found: list[dict[str, object]]) -> None:
    """Share of the bare model's throughput, and hit rates, over the number of tasks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    rates, hits = figure.subplots(1, 2)
    for mix, style in zip(MIXES, ("-o", "--s"), strict=True):
        rows = [row for row in found if row["mix"] == mix]
        sizes = [row["tasks"] for row in rows]
        rates.plot(sizes, [row["of_bare"] for row in rows], style, label=mix)
        for tier in ("gpu", "host", "disk"):
            shares = [row["hit_rates"].get(tier, 0.0) for row in rows]  # type: ignore[attr-defined]
            hits.plot(sizes, shares, style, label=f"{tier}, {mix}")
    for axes, title in ((rates, "new tokens/s, share of the bare model's"), (hits, "share of requests by tier")):
        axes.set(xscale="log", xlabel="tasks", title=title, ylim=(0, None))
        axes.legend()
    figure.savefig(path)


def main(arguments: Sequence[str]) -> int:
    from softmux.bench.bases.random_base import SHAPES, random_model

    parser = argparse.ArgumentParser(prog="softmux bench residency", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--tasks", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--gpu-room", type=int, default=2000, help="adapters")
    parser.add_argument("--host-room", type=int, default=10000, help="adapters")
    parser.add_argument("--requests", type=int, default=7200, help="for each number of tasks and mix")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="for all passes together")
    parser.add_argument("--prompt", type=int, nargs=2, default=(32, 32), metavar=("LOW", "HIGH"), help="tokens")
    parser.add_argument("--new", type=int, nargs=2, default=(8, 16), metavar=("LOW", "HIGH"), help="tokens")
    parser.add_argument("--outstanding", type=int, default=1024, help="requests at a time")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--samples", type=int, default=150, help="single requests for each tier's time to first token")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="needs matplotlib")
    options = parser.parse_args(arguments)
    if options.requests < LEAST_REQUESTS:
        parser.error(f"requests: at least {LEAST_REQUESTS}, one a slice")
    say = sys.stdout.write
    load = Load(options.prompt[0], options.prompt[1], options.new[0], options.new[1], options.outstanding)
    room = Room(options.gpu_room, options.host_room)
    device = pick_device("auto")
    model = random_model(options.shape, torch.bfloat16, device)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        bench = Bench(model, max(options.tasks), room, load, Path(folder), rows=options.rows)
        say(f"{name_of(device)}, {options.shape}, {room}, {load}\n{bench.room_words()}\n")
        say(
            f"{max(options.tasks)} tasks written to disk, {time.perf_counter() - began:.1f} s with the engine's start\n"
        )
        gc.collect()
        gc.freeze()  # as the worker does: else a collection over the model's objects falls into somebody's slice
        found = crossing(bench, sorted(options.tasks), options.requests, room=room, seconds=options.seconds, say=say)
        times = bench.first_tokens(options.samples)
        bench.close()
    added = {
        "gpu beyond bare": Added.of(times["gpu"], times["bare"]),
        "host beyond gpu": Added.of(times["host"], times["gpu"]),
        "disk beyond gpu": Added.of(times["disk"], times["gpu"]),
    }
    for name, more in added.items():
        if more is not None:
            say(f"time to first token, {name}: {more.median:+.3f} ms ({more.low:+.3f} to {more.high:+.3f})\n")
    if options.json:
        told = {name: more and asdict(more) for name, more in added.items()}
        told_load = {"room": asdict(room), "load": asdict(load), "device": name_of(device), "shape": options.shape}
        options.json.write_text(json.dumps({**told_load, "passes": found, "added_ttft_ms": told}, indent=1) + "\n")
    if options.plot:
        draw_plot(options.plot, found)
    return 0
