"""What a cartridge saves: the time to first token behind trained keys and values, beside a text of as many tokens.

`softmux bench cartridges --shape 8b`: random weights; a request of a few tokens comes alone, behind a text that is new
(it is computed), behind a cartridge in host memory (it is copied in), and behind one in the GPU's pool, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from softmux.bench.bases.random_base import SHAPES, random_model
from softmux.bench.bases.random_tasks import Task, prefix
from softmux.bench.device.rates import name_of, settle
from softmux.engine.engine import Engine, pick_device, pick_dtype
from softmux.settings import Settings
from softmux.types import SamplingParams

TEXT, HOST, RESIDENT = "text", "from host memory", "resident"


def first_token(engine: Engine, task: Task, ids: tuple[int, ...]) -> float:
    """Seconds from a request's arrival to its token, alone in the engine. Its ids lie ready before: a server lays them
    out in another process."""
    tokens = task.around(ids)
    settle(engine.model.device)
    began = time.perf_counter()
    engine.add("one", tokens, SamplingParams(max_tokens=1, ignore_eos=True), root=task.root, now=0.0)
    seconds = 0.0
    while not seconds or not engine.idle:
        news = engine.step()
        if news.failed:
            raise news.failed[0][1]
        if news.outputs and not seconds:
            seconds = time.perf_counter() - began
    return seconds


def measure(engine: Engine, tokens: int, own: int, repeats: int) -> dict[str, list[float]]:
    """Seconds to first token by where what stands before the request's `own` tokens comes from. The first round, in
    which kernels are compiled, is not counted."""
    draw = np.random.default_rng(tokens)
    cartridge, bare = prefix(engine, f"cartridge-{tokens}", tokens), Task(engine.key("default", None))

    def fresh(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(3, engine.spec.vocab_size, count).tolist())

    found: dict[str, list[float]] = {TEXT: [], HOST: [], RESIDENT: []}
    for turn in range(repeats + 1):
        engine.scheduler.cache.clear()
        took = {TEXT: first_token(engine, bare, fresh(tokens + own))}
        took[HOST] = first_token(engine, cartridge, fresh(own))
        took[RESIDENT] = first_token(engine, cartridge, fresh(own))
        for name, seconds in took.items() if turn else ():
            found[name].append(seconds)
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench cartridges", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 4096, 16384], help="of each cartridge")
    parser.add_argument("--own", type=int, default=32, help="tokens of a request's own")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    if min(*options.tokens, options.own, options.repeats) < 1:
        parser.error("tokens, own and repeats are at least 1")
    longest = max(options.tokens) + options.own + 1
    device = pick_device(options.device)
    settings = Settings(
        model="random", device=options.device, max_rows=8, max_step_tokens=8192, kv_tokens=max(64, 3 * longest),
        host_cache_bytes=32 << 30,
    )  # fmt: skip
    model = random_model(options.shape, pick_dtype("auto", device), device, context=max(64, longest))
    engine = Engine(settings, lambda key: {}, model=model)
    told = {}
    for tokens in options.tokens:
        found = measure(engine, tokens, options.own, options.repeats)
        text, host, resident = (statistics.median(found[name]) * 1e3 for name in (TEXT, HOST, RESIDENT))
        sys.stdout.write(
            f"{name_of(device)}, {options.shape}, {tokens} tokens: as a text {text:.2f} ms, cartridge from host memory "
            f"{host:.2f}, resident {resident:.2f}: {text - host:.2f} and {text - resident:.2f} ms saved\n"
        )
        sys.stdout.flush()
        told[tokens] = found
    engine.close()
    sys.stdout.write(json.dumps({"shape": options.shape, "own": options.own, "seconds": told}) + "\n")
    return 0
