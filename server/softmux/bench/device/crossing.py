"""Passes over thousands of tasks in an engine that has room for fewer, on the GPU and in host memory."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from softmux.engine.engine import Engine
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import KVPool
from softmux.engine.packed import PackedModel
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.types import SamplingParams

VECTORS = 20
MIXES = {"uniform": 0.0, "zipf": 1.0}
_LEAD = tuple(-1 - i for i in range(VECTORS))
_PATTERNS = 64
"""Distinct prompts; every task has a file of its own, and that is what is measured."""

_PERCENTILES = (50, 90, 99)
_ROUNDS = 2
"""Times that the bare model has its turn in a pass, between two slices of the tasks'."""
LEAST_REQUESTS = 2 * _ROUNDS
"""For each number of tasks and mix: one a slice."""

Lengths = tuple[int, int]
"""A request's prompt tokens and new ones."""


@dataclass(frozen=True, slots=True)
class Room:
    """Adapters for which there is room. On the GPU: the KV pool holds that many prompts, each with the text of a
    request behind it, beside what the running rows need; the vectors' table as many. In host memory: that many
    prompts' vectors; their computed KV lies there only in what they leave."""

    gpu: int
    host: int


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of `low … high` prompt tokens and `least … most` new ones, `outstanding` at a time."""

    low: int = 32
    high: int = 32
    least: int = 8
    most: int = 16
    outstanding: int = 1024


@dataclass(slots=True)
class Pass:
    """What a pass over some requests showed; times in seconds, `found` by where a request's prompt was on arrival."""

    tasks: int
    mix: str
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    of_bare: list[float] = field(default_factory=list)
    """Its slices' rates over those of the bare model's slices on the same lengths, each beside it in time."""
    found: Counter[str] = field(default_factory=Counter)
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    def add(self, part: Pass) -> None:
        """A part of the same pass."""
        self.requests += part.requests
        self.tokens += part.tokens
        self.seconds += part.seconds
        self.found += part.found
        self.first += part.first
        self.whole += part.whole

    @property
    def rate(self) -> float:
        """New tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def figures(self) -> dict[str, object]:
        hits = {tier: round(count / max(1, self.requests), 4) for tier, count in sorted(self.found.items())}
        return {
            "tasks": self.tasks,
            "mix": self.mix,
            "requests": self.requests,
            "tokens_per_second": round(self.rate, 1),
            "hit_rates": hits,
            "ttft_ms": _cuts(self.first),
            "latency_ms": _cuts(self.whole),
        }


def _cuts(seconds: list[float]) -> dict[str, float]:
    if not seconds:
        return {}
    values = np.percentile(np.array(seconds) * 1e3, _PERCENTILES)
    return {f"p{cut}": round(float(value), 3) for cut, value in zip(_PERCENTILES, values, strict=True)}


@dataclass(frozen=True, slots=True)
class _Job:
    root: RootKey
    tokens: tuple[int, ...]
    sampling: SamplingParams


class Bench:
    """An engine with `tasks` adapters on its disk, and room for fewer."""

    def __init__(
        self, model: PackedModel, tasks: int, room: Room, load: Load, folder: Path, *, rows: int = 256, seed: int = 0
    ) -> None:
        hidden = int(model.embedding.weight.shape[1])
        each = VECTORS + load.high + load.most
        kept = VECTORS * hidden * model.dtype.itemsize
        if model.device.type == "cpu":  # there a prompt's computed keys and values lie beside its vectors
            kept += VECTORS * KVPool.bytes_per_token(model.layers, model.dtype)
        settings = Settings(
            model="random",
            max_rows=rows,
            max_step_tokens=8192,
            max_waiting=1 << 20,
            kv_tokens=(room.gpu + rows) * each,
            resident_vectors=max(64, room.gpu * VECTORS),
            host_cache_bytes=room.host * kept,
            disk_cache_bytes=1 << 40,
        )
        self.load = load
        self.engine = Engine(settings, lambda key: {}, model=model, disk_folder=folder)
        self.draw = np.random.default_rng(seed)
        self.bare = self.engine.key("default", None)
        self.roots = [self.engine.key("default", f"task-{number}") for number in range(tasks)]
        drawn = self.draw.standard_normal((min(_PATTERNS, tasks), VECTORS, hidden), np.float32) * 0.02
        patterns = [HostAdapter(vectors) for vectors in torch.from_numpy(drawn).to(model.dtype)]
        for number, root in enumerate(self.roots):
            self.engine.tiers.loader.write(root, patterns[number % len(patterns)])
        if not self.engine.tiers.loader.settle(600):
            raise TimeoutError("writing the tasks to disk took more than ten minutes")

    def close(self) -> None:
        self.engine.close()

    def room_words(self) -> str:
        """The budgets in force, in bytes."""
        runner, pool = self.engine.runner, self.engine.runner.pool
        kv = pool.slots * KVPool.bytes_per_token(self.engine.spec.layers, pool.dtype)
        table = runner.vocabulary.table
        return (
            f"GPU: KV pool {pool.slots} tokens, {kv / 1e9:.2f} GB, vectors {table.shape[0]} rows, "
            f"{table.nbytes / 1e9:.3f} GB"
        )

    def where(self, root: RootKey) -> str:
        """Where a request that comes now finds its prompt."""
        if root.digest is None or self.engine.scheduler.cache.tree.begins(root, -1):
            return "gpu"
        return self.engine.tiers.tier(root)

    def run(
        self,
        roots: Iterable[RootKey],
        result: Pass,
        *,
        lengths: Iterable[Lengths] | None = None,
        until: float = float("inf"),
    ) -> Pass:
        """Keeps `outstanding` requests in the engine until all of `roots` are done; no new ones after `until`. Each has
        its own of `lengths`, or what is drawn for it."""
        engine = self.engine
        asked: dict[str, float] = {}
        jobs = deque(self._jobs(roots, lengths))
        number = 0
        began = time.perf_counter()
        while jobs or asked:
            while jobs and len(asked) < self.load.outstanding:
                job = jobs.popleft()
                now = time.perf_counter()
                if now > until:
                    jobs.clear()
                    break
                result.found[self.where(job.root)] += 1
                asked[str(number)] = now
                self._add(str(number), job)
                number += 1
            news = engine.step()
            if news.failed:
                raise news.failed[0][1]
            now = time.perf_counter()
            for sequence, output in news.each():
                result.tokens += len(output.tokens)
                if sequence.generated == len(output.tokens):
                    result.first.append(now - asked[sequence.id])
                if output.finish_reason is not None:
                    result.whole.append(now - asked.pop(sequence.id))
            if not news.outputs and not news.ran:
                time.sleep(0.0001)  # the loader has the interpreter to itself
        result.requests += number
        result.seconds += time.perf_counter() - began
        return result

    def lengths(self) -> Iterator[Lengths]:
        """As many as are asked for."""
        load, draw = self.load, self.draw
        while True:
            yield int(draw.integers(load.low, load.high + 1)), int(draw.integers(load.least, load.most + 1))

    def _jobs(self, roots: Iterable[RootKey], lengths: Iterable[Lengths] | None = None) -> Iterator[_Job]:
        """What is asked, made before the clock runs."""
        draw, vocabulary = self.draw, self.engine.spec.vocab_size
        for root, (length, count) in zip(roots, lengths or self.lengths(), strict=False):
            ids = tuple(draw.integers(3, vocabulary, length).tolist())
            yield _Job(root, (*_LEAD, *ids) if root.digest else ids, SamplingParams(max_tokens=count, ignore_eos=True))

    def _add(self, name: str, job: _Job) -> None:
        self.engine.add(name, job.tokens, job.sampling, root=job.root, now=time.monotonic())

    def tasks_of(self, mix: str, tasks: int, count: int) -> Iterator[RootKey]:
        """`count` draws among the first `tasks`, each with probability ∝ 1 / rank^exponent; ranks are shuffled."""
        weights = 1.0 / np.arange(1, tasks + 1) ** MIXES[mix]
        order = np.random.default_rng(tasks).permutation(tasks)
        picked = order[self.draw.choice(tasks, count, p=weights / weights.sum())]
        return (self.roots[int(task)] for task in picked)

    def first_tokens(self, samples: int) -> dict[str, list[float]]:
        """Seconds to first token of requests that come alone, by where their prompt was, the tiers in turn."""
        times: dict[str, list[float]] = {"bare": [], "gpu": [], "host": [], "disk": []}
        tried = 0
        while min(map(len, times.values())) < samples and tried < 200 * samples:
            for tier, found in times.items():
                tried += 1
                root = self.bare if tier == "bare" else self._one_in(tier)
                if root is not None and len(found) < samples:
                    found.append(self._alone(root))
        return times

    def _one_in(self, tier: str) -> RootKey | None:
        for task in self.draw.integers(0, len(self.roots), 400):
            root = self.roots[int(task)]
            if self.where(root) == tier:
                return root
        return None

    def _alone(self, root: RootKey) -> float:
        (job,) = self._jobs([root])
        began = time.perf_counter()
        self._add("alone", _Job(root, job.tokens, SamplingParams(max_tokens=1, ignore_eos=True)))
        seconds = 0.0
        while self.engine.scheduler.running or len(self.engine.scheduler.waiting) or not self.engine.idle:
            news = self.engine.step()
            if news.outputs and not seconds:
                seconds = time.perf_counter() - began
            if not news.ran:
                time.sleep(0)
        return seconds


def _round(bench: Bench, bare: Pass, many: Pass, requests: int, *, until: float) -> None:
    """A slice of the tasks, one of the bare model, one of the tasks: of as many requests, and of the same lengths, so
    that they begin and run out alike, and what the machine does over time weighs on both."""
    lengths = list(itertools.islice(bench.lengths(), requests))
    slices = [Pass(many.tasks, many.mix), Pass(bare.tasks, bare.mix), Pass(many.tasks, many.mix)]
    for part, into in zip(slices, (many, bare, many), strict=True):
        roots = [bench.bare] * requests if into is bare else bench.tasks_of(many.mix, many.tasks, requests)
        into.add(bench.run(roots, part, lengths=lengths, until=until))
    before, beside, after = slices
    many.of_bare += [
        part.rate / beside.rate for part in (before, after) if part.requests == beside.requests == requests
    ]


def crossing(
    bench: Bench, sizes: Sequence[int], requests: int, *, room: Room, seconds: float, say: Callable[[str], object]
) -> list[dict[str, object]]:
    """A pass for each size and mix, the bare model in turn. The tasks that fit in host memory are used once before."""
    ends = time.perf_counter() + seconds
    warmed = 0
    found: list[dict[str, object]] = []
    bench.run([bench.bare] * bench.load.outstanding, Pass(0, "warm-up"))
    for at, size in enumerate(sizes):
        fresh = min(size, room.host)
        bench.run(bench.roots[warmed:fresh], Pass(size, "warm-up"))
        warmed = max(warmed, fresh)
        for turn, mix in enumerate(MIXES):
            left = (ends - time.perf_counter()) / (len(MIXES) * (len(sizes) - at) - turn)
            if left < 0:
                say(f"{size} tasks, {mix}: no time left\n")
                continue
            bare, many = Pass(size, "bare"), Pass(size, mix)
            for _ in range(_ROUNDS):
                _round(bench, bare, many, requests // LEAST_REQUESTS, until=time.perf_counter() + left / _ROUNDS)
            figures = many.figures() | {
                "bare_tokens_per_second": round(bare.rate, 1),
                "bare_ttft_ms": _cuts(bare.first),
                "of_bare": round(statistics.median(many.of_bare), 4) if many.of_bare else None,
                "of_bare_slices": [round(share, 4) for share in many.of_bare],
            }
            found.append(figures)
            say(json.dumps(figures) + "\n")
    bench.engine.check_integrity()
    return found
