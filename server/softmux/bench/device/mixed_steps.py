"""Steps into which requests come: rows that decode, and prompts in every step, by CUDA graphs and without, in turn.

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

_CASES = (
    (0, 1, 20), (0, 1, 128), (0, 1, 300), (16, 1, 64), (16, 32, 4), (64, 1, 128),
    (240, 1, 32), (240, 1, 128), (240, 1, 300), (240, 1, 600), (224, 8, 12),
)  # fmt: skip
"""Rows that decode, prompts that come in each step, and their tokens."""
_CONTEXT = 256


def arriving(bench: Bench, rows: int, prompts: int, tokens: int, steps: int) -> float:
    """Seconds a step, of so many `steps`, in which `rows` decode and `prompts` of so many `tokens` come; where no row
    decodes, from their coming to their first tokens."""
    engine = bench.engine
    engine.scheduler.cache.clear()
    if rows:
        bench.add_decoding(rows, _CONTEXT, steps + 40)
    seconds = 0.0
    for number in range(steps + 4):
        if number == 4:
            settle(bench.device)
            seconds = -time.perf_counter()
        bench.add([bench.bare] * prompts, [tokens] * prompts, 1)
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
    for rows, prompts, tokens in _CASES:
        if rows + 3 * prompts > options.rows:
            continue
        times: dict[str, list[float]] = {way: [] for way in ways}
        replayed = runner.ways.steps["mixed_graph"]
        for turn in range(options.repeats + 1):  # the first for practice
            order = list(ways.items())
            for way, mixed in order if turn % 2 else reversed(order):
                runner.mixed = mixed
                times[way].append(arriving(bench, rows, prompts, tokens, options.steps))
        replayed = runner.ways.steps["mixed_graph"] - replayed
        medians = {way: statistics.median(values[1:]) for way, values in times.items()}
        told = ", ".join(f"{way} {seconds * 1e3:.3f} ms" for way, seconds in medians.items())
        sys.stdout.write(f"{rows:4d} rows, {prompts:2d} prompts of {tokens:3d} a step: {told}; {replayed} replays\n")
        case = {"rows": rows, "prompts": prompts, "tokens": tokens, "seconds": times, "replays": replayed}
        found.append(case)
    sys.stdout.write(json.dumps({"device": name_of(bench.device), "shape": options.shape, "cases": found}) + "\n")
    bench.engine.close()
    return 0
