"""Steps into which requests come: rows that decode, and a prompt in every step, by CUDA graphs and without, in turn.

`softmux bench mixed-steps --shape 1b`: random weights, fresh prompts, milliseconds a step, host included. Where no row
decodes, a request comes after the other: that is the time to its first token.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

from softmux.bench.bases.random_base import SHAPES
from softmux.bench.device.gpu import Bench
from softmux.bench.device.rates import name_of, settle

_CASES = ((0, 20), (0, 128), (0, 300), (16, 64), (64, 128), (240, 32), (240, 128), (240, 300), (240, 600))
_CONTEXT = 256


def arriving(bench: Bench, rows: int, tokens: int, steps: int) -> float:
    """Seconds a step, of so many `steps`, in which `rows` decode and a prompt of `tokens` comes; where no row decodes,
    from its coming to its first token."""
    engine = bench.engine
    engine.scheduler.cache.clear()
    if rows:
        bench.add([bench.bare] * rows, [_CONTEXT] * rows, steps + 40)
        while any(not s.decoding for s in engine.scheduler.running) or len(engine.scheduler.waiting):
            engine.step()
    seconds = 0.0
    for number in range(steps + 4):
        if number == 4:
            settle(bench.device)
            seconds = -time.perf_counter()
        bench.add([bench.bare], [tokens], 1)
        if rows:
            engine.step()
        else:
            bench.finish()
    settle(bench.device)
    seconds += time.perf_counter()
    bench.finish()
    return seconds / steps


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench mixed-steps", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--rows", type=int, default=256, help="of the engine; cases of more are left out")
    parser.add_argument("--steps", type=int, default=24, help="measured at once")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    if min(options.rows, options.steps, options.repeats) < 1:
        parser.error("rows, steps and repeats are at least 1")
    bench = Bench(options.shape, options.rows, tasks=1, device=options.device)
    runner = bench.engine.runner
    ways = {"graphs": runner.mixed, "without": None} if runner.mixed is not None else {"without": None}
    sys.stdout.write(f"{name_of(bench.device)}, {options.shape}; graphs {sorted(ways)[0] == 'graphs'}\n")
    found = []
    for rows, tokens in _CASES:
        if rows + 4 > options.rows:
            continue
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(options.repeats + 1):  # the first for practice
            order = list(ways.items())
            for way, mixed in order if turn % 2 else reversed(order):
                runner.mixed = mixed
                times[way].append(arriving(bench, rows, tokens, options.steps))
        medians = {way: statistics.median(values[1:]) for way, values in times.items()}
        told = ", ".join(f"{way} {seconds * 1e3:.3f} ms" for way, seconds in medians.items())
        sys.stdout.write(f"{rows:4d} rows, a prompt of {tokens:4d} a step: {told}\n")
        found.append({"rows": rows, "tokens": tokens, "seconds": times})
    sys.stdout.write(json.dumps({"device": name_of(bench.device), "shape": options.shape, "cases": found}) + "\n")
    bench.engine.close()
    return 0
