"""The GPU engine against the card: decode steps over the bytes they must move, and whole workloads.

Random weights of known shapes, so nothing is downloaded: `softmux bench gpu --shape 1b`. With
`--tensor-parallel 2` over two GPUs; the floor is then that of one GPU's part. `--loras 16` takes as many LoRAs along.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from softmux.bench.bases.random_base import SHAPES, random_engine
from softmux.bench.bases.random_tasks import LORA_MODULES, LORA_RANK, METHODS, Task, linears_named, lora, soft_prompt
from softmux.bench.device.rates import copy_rate, median_seconds, name_of, settle
from softmux.engine.engine import pick_device
from softmux.engine.fp8 import Fp8Linear
from softmux.errors import InvalidRequest
from softmux.settings import Settings
from softmux.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Workload:
    """`rows` requests at once, prompts of `low … high` tokens, `new_tokens` each."""

    rows: int
    low: int
    high: int
    new_tokens: int


WORKLOADS = {
    "W1": Workload(256, 128, 384, 128),
    "W2": Workload(1024, 128, 384, 128),
    "W3": Workload(64, 384, 384, 128),
    "W4": Workload(1, 128, 128, 128),
}


_STEPS = 60
"""Decode steps measured at once; rows have half as many tokens less at first than they are said to have."""


class Bench:
    """One engine over random weights; `prompts`: tasks of one method, `mixed`: as many of four, from memory."""

    def __init__(
        self,
        shape: str,
        rows: int,
        tasks: int = 16,
        quantization: Literal["auto", "fp8"] = "auto",
        kv_cache_dtype: Literal["auto", "fp8"] = "auto",
        tensor_parallel: int = 1,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        self.device = pick_device(device)
        settings = Settings(
            model="random",
            device=device,
            max_rows=rows,
            max_step_tokens=8192,
            host_cache_bytes=16 << 30,
            quantization=quantization,
            kv_cache_dtype=kv_cache_dtype,
            tensor_parallel=tensor_parallel,
        )
        self.engine, self.crew = random_engine(shape, settings)
        self.bare = Task(self.engine.key("default", None))
        self.mixed = [soft_prompt(self.engine, number, METHODS[number % len(METHODS)]) for number in range(tasks)]
        self.prompts = [soft_prompt(self.engine, tasks + number, METHODS[0]) for number in range(tasks)]
        self.draw = np.random.default_rng(0)
        self._numbers = itertools.count()
        gc.collect()
        gc.freeze()  # as the worker does: a full collection over the model's objects takes 0.3 s

    def close(self) -> None:
        self.engine.close()
        if self.crew is not None:
            self.crew.end()

    def decode_step(self, rows: int, context: int, steps: int = _STEPS) -> float:
        """Seconds a step, host included, with `rows` rows of about `context` tokens decoding."""
        self.add_decoding(rows, context - steps // 2, steps + 12)
        engine = self.engine
        for _ in range(4):
            engine.step()
        settle(self.device)
        began = time.perf_counter()
        for _ in range(steps):
            engine.step()
        settle(self.device)
        seconds = (time.perf_counter() - began) / steps
        self.finish()
        return seconds

    @torch.inference_mode()
    def graph_step(self, rows: int, context: int) -> float:
        """Seconds a replay of the decode graph alone takes on the device."""
        graphs = self.engine.runner.graphs
        if graphs is None:
            return float("nan")
        slots = list(range(rows))
        table = self.engine.runner.table
        table[:rows, :context] = torch.arange(rows * context, device=table.device, dtype=torch.int32).view(rows, -1)
        newest = [i * context + context - 1 for i in slots]
        static = np.array([[1] * rows, slots, [context - 1] * rows, newest], np.int32)
        orders = self.engine.runner.orders

        def replay() -> None:
            if orders is not None:
                orders.replay_columns(static)
            graphs.replay(static)

        def replays() -> None:
            for _ in range(30):
                replay()

        seconds = median_seconds(self.device, replays, 1) / 30
        self.engine.runner.forget_rows()
        return seconds

    def floor(self, rows: int, context: int, rate: float) -> float:
        """Seconds to move the weights once and every row's KV once at the copy rate."""
        pool = self.engine.runner.pool
        each = pool.bytes_per_token(self.engine.model.layers, pool.dtype)
        return (self._streamed() + rows * context * each) / rate

    def _streamed(self) -> int:
        """Bytes of the weights that a step reads: all, but the embedding where the head has a weight of its own."""
        module: Any = self.engine.model.module
        read: list[int] = [tensor.nbytes for tensor in module.parameters()]
        read += [layer.weight_scale.nbytes for layer in module.modules() if isinstance(layer, Fp8Linear)]
        tied = module.get_output_embeddings().weight is module.get_input_embeddings().weight
        embedding: torch.Tensor = module.get_input_embeddings().weight
        total: int = sum(read) - (0 if tied else embedding.nbytes)
        return total

    def lengths(self, work: Workload) -> list[int]:
        return [int(n) for n in self.draw.integers(work.low, work.high + 1, work.rows)]

    def throughput(self, work: Workload, tasks: list[Task], lengths: list[int]) -> float:
        """New tokens a second over a whole workload of prompts of `lengths`, all requests at once, `tasks` in turn."""
        self.engine.scheduler.cache.clear()
        began = time.perf_counter()
        self.add([tasks[i % len(tasks)] for i in range(work.rows)], lengths, work.new_tokens)
        self.finish()
        return work.rows * work.new_tokens / (time.perf_counter() - began)

    def add(self, tasks: list[Task], lengths: list[int], new_tokens: int) -> None:
        """Requests with random prompts."""
        vocabulary = self.engine.spec.vocab_size
        sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        for task, length in zip(tasks, lengths, strict=True):
            ids = tuple(self.draw.integers(3, vocabulary, length).tolist())
            self.engine.add(str(next(self._numbers)), task.around(ids), sampling, root=task.root, now=time.monotonic())

    def add_decoding(self, rows: int, context: int, new_tokens: int) -> None:
        """As many requests, and steps until all of them decode."""
        self.add([self.bare] * rows, [context] * rows, new_tokens)
        engine = self.engine
        while any(not s.decoding for s in engine.scheduler.running) or len(engine.scheduler.waiting):
            engine.step()

    def finish(self) -> None:
        """Steps until nothing is left."""
        engine = self.engine
        while engine.scheduler.running or len(engine.scheduler.waiting) or not engine.idle:
            news = engine.step()
            if news.failed:
                raise news.failed[0][1]
        settle(self.device)


def measure_steps(bench: Bench, rate: float, options: argparse.Namespace) -> dict[str, Any]:
    """Decode steps of 1, 16, 64 and 256 rows, as far as there are so many, over their floor."""
    found: dict[str, Any] = {}
    for rows in (1, 16, 64, 256):
        if rows > options.rows:
            continue
        steps = [bench.decode_step(rows, options.context) for _ in range(options.repeats)]
        graph, floor = bench.graph_step(rows, options.context), bench.floor(rows, options.context, rate)
        step = statistics.median(steps)
        found[f"step_{rows}"] = {"seconds": steps, "graph": graph, "floor": floor}
        sys.stdout.write(
            f"{rows:4d} rows: step {step * 1e3:.3f} ms, graph alone {graph * 1e3:.3f}, floor {floor * 1e3:.3f}: "
            f"{step / floor:.2f} x (graph {graph / floor:.2f} x)\n"
        )
    return found


def measure_works(bench: Bench, options: argparse.Namespace) -> dict[str, Any]:
    """New tokens a second of each workload by the contenders, who take turns; ratios are of runs next to each other."""
    contenders = {
        "bare": [bench.bare],
        f"{options.tasks} soft prompts": bench.prompts,
        f"{options.tasks} tasks of four methods": bench.mixed,
    }
    if options.loras:
        adapters = [lora(bench.engine, number, options.rank, options.modules) for number in range(options.loras)]
        contenders[f"{options.loras} LoRAs of rank {options.rank}"] = adapters
    found: dict[str, Any] = {}
    for name in options.works:
        work = WORKLOADS[name]
        for tasks in contenders.values():
            bench.throughput(work, tasks, bench.lengths(work))
        rates: dict[str, list[float]] = {kind: [] for kind in contenders}
        for turn in range(options.repeats):
            lengths = bench.lengths(work)
            order = list(contenders.items())
            for kind, tasks in order if turn % 2 == 0 else reversed(order):
                rates[kind].append(bench.throughput(work, tasks, lengths))
        for kind, values in rates.items():
            of_bare = statistics.median(own / bare for own, bare in zip(values, rates["bare"], strict=True))
            sys.stdout.write(
                f"{name} {kind}: {statistics.median(values):.0f} tok/s, {of_bare:.1%} of bare "
                f"{[round(value) for value in values]}\n"
            )
        found[name] = rates
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="softmux bench gpu", description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--context", type=int, default=512, help="tokens of each row in a decode step; above 30")
    parser.add_argument("--only", choices=("", "steps", "work"), default="", help="leave the other out")
    parser.add_argument("--works", nargs="+", choices=WORKLOADS, default=["W1", "W3", "W4"])
    parser.add_argument("--tasks", type=int, default=16)
    parser.add_argument("--loras", type=int, default=0, help="another contender: as many LoRAs in turn")
    parser.add_argument("--rank", type=int, default=LORA_RANK)
    parser.add_argument("--modules", nargs="+", default=LORA_MODULES, help="what LoRAs act on")
    parser.add_argument("--quantization", choices=("auto", "fp8"), default="auto")
    parser.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that hold it between them")
    parser.add_argument("--kv-cache-dtype", choices=("auto", "fp8"), default="auto")
    options = parser.parse_args(arguments)
    _check(options)
    device = pick_device(options.device)
    rate = copy_rate(device)
    sys.stdout.write(f"{name_of(device)}: copy {rate / 1e12:.2f} TB/s\n")
    bench = Bench(
        options.shape,
        options.rows,
        tasks=options.tasks,
        quantization=options.quantization,
        kv_cache_dtype=options.kv_cache_dtype,
        tensor_parallel=options.tensor_parallel,
        device=options.device,
    )
    try:
        if options.loras:
            linears_named(bench.engine.spec, options.modules)
        runner = bench.engine.runner
        sys.stdout.write(f"fused {runner.fused is not None}, graphs {runner.graphs is not None}\n")
        found: dict[str, Any] = {"device": name_of(device), "copy_rate": rate, "shape": options.shape}
        if options.only != "work":
            found |= measure_steps(bench, rate, options)
        if options.only != "steps":
            found |= measure_works(bench, options)
        sys.stdout.write(json.dumps(found) + "\n")
    finally:
        bench.close()
    if bench.crew is not None:
        sys.stdout.flush()
        os._exit(0)  # communicators of CUDA are not taken down one by one


def _check(options: argparse.Namespace) -> None:
    """Raises `InvalidRequest` for what would fail after a model was made."""
    for name in ("repeats", "rows", "tasks", "rank", "tensor_parallel"):
        if getattr(options, name) < 1:
            raise InvalidRequest("is at least 1.", param=f"--{name.replace('_', '-')}")
    if options.loras < 0:
        raise InvalidRequest("is the number of LoRAs, or 0 for none.", param="--loras")
    if options.only != "work" and options.context <= _STEPS // 2:
        raise InvalidRequest(
            f"is above {_STEPS // 2}: a decode step is the mean of {_STEPS}, before and behind so many tokens.",
            param="--context",
        )
