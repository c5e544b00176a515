"""Thousands of adapters, room for a few: what a request pays for an adapter that is in host memory, or on disk."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from softmux.bench.loads.workload import VIRTUAL_TOKENS, Job, random_prompt_adapter, zipf_tasks
from softmux.bench.peers.offline import OfflineEngine
from softmux.settings import Settings
from softmux.types import SamplingParams

PROMPT = 8


@dataclass(slots=True)
class TierFigures:
    """Times to first token, in seconds, of single requests by where the adapter's compiled KV was."""

    times: dict[str, list[float]] = field(default_factory=dict)
    errors: int = 0
    requests: int = 0
    loads: dict[str, int] = field(default_factory=dict)

    def added(self, tier: str) -> float:
        """Median time beyond that of a resident adapter."""
        return statistics.median(self.times[tier]) - statistics.median(self.times["resident"])


def run_tiers(
    model: str, *, adapters: int, in_host: int, in_pool: int, requests: int, threads: int, seed: int = 0
) -> TierFigures:
    """`adapters` registered; host memory for `in_host` of them, the KV pool for about `in_pool`. Every adapter is used
    once in batches (its prompt's KV is compiled then, and kept on disk); then `requests` come one at a time, Zipf."""
    figures = TierFigures()
    with tempfile.TemporaryDirectory() as scratch:
        base = Settings(model=model, device="cpu", dtype="float32", threads=threads)
        probe = OfflineEngine(base.model_copy(update={"kv_tokens": 1024}), [])
        spec = probe.engine.spec
        probe.close()
        each = sum(2 * layer.kv_heads * layer.head_dim for layer in spec.layers) * 4 * VIRTUAL_TOKENS
        each += VIRTUAL_TOKENS * spec.hidden_size * 4
        settings = base.model_copy(
            update={"kv_tokens": in_pool * (VIRTUAL_TOKENS + PROMPT), "host_cache_bytes": in_host * each}
        )
        made = (random_prompt_adapter(number, spec.hidden_size) for number in range(adapters))
        engine = OfflineEngine(settings, made, disk_folder=Path(scratch))
        draw = random.Random(seed)  # noqa: S311
        prompts = [tuple(draw.randrange(3, spec.vocab_size) for _ in range(PROMPT)) for _ in range(requests)]
        for begin in range(0, adapters, 64):
            engine.run([Job(task, prompts[0], 1) for task in range(begin, min(begin + 64, adapters))])
        for task, ids in zip(zipf_tasks(requests, adapters, seed=seed), prompts, strict=True):
            _one(engine, task, ids, figures)
        figures.loads = dict(engine.engine.tiers.counts.loads)
        engine.engine.check_integrity()
        engine.close()
    return figures


def _one(engine: OfflineEngine, task: int, ids: tuple[int, ...], figures: TierFigures) -> None:
    """One request alone; where its adapter was is told by what was loaded for it."""
    inner = engine.engine
    place = engine.place(task)
    before = dict(inner.tiers.counts.loads)
    began = time.perf_counter()
    sequence = inner.add(
        "one", (*place.virtual, *ids), SamplingParams(max_tokens=1), root=place.root, now=time.monotonic()
    )
    copied = False
    while inner.scheduler.running or len(inner.scheduler.waiting):
        news = engine.step()
        figures.errors += len(news.failed)
        copied |= bool(news.batch is not None and news.batch.loads)
    seconds = time.perf_counter() - began
    figures.requests += 1
    tier = next((t for t in ("registry", "disk") if inner.tiers.counts.loads[t] > before[t]), "host")
    if sequence.cached >= len(place.virtual) and not copied and tier == "host":
        tier = "resident"
    figures.times.setdefault(tier, []).append(seconds)
