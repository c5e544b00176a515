"""The mixed batch against its peers: 64 requests over 16 tasks of four methods, all in one run, taking turns."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softmux.bench.loads.arrivals import at_once
from softmux.bench.loads.load import Load
from softmux.bench.loads.summary import summarize
from softmux.bench.loads.workload import Job, bare, make_adapters, make_jobs
from softmux.bench.peers.offline import OfflineEngine, Run
from softmux.bench.peers.peers import GenerateBatch, LoadEach, PaddedBatch, Peer, SetAdapter, load_base
from softmux.formats.folder import load_folder
from softmux.settings import Settings

REQUESTS = 64
TASKS = 16
LENGTHS = (8, 32)
NEW_TOKENS = 32


@dataclass(slots=True)
class Figures:
    """Rates in new tokens a second, by contender, one a repeat."""

    rates: dict[str, list[float]] = field(default_factory=dict)
    counts: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, rate: float) -> None:
        self.rates.setdefault(name, []).append(rate)

    def median(self, name: str) -> float:
        return statistics.median(self.rates[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over the repeats of the two rates measured next to each other."""
        pairs = zip(self.rates[name], self.rates[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def arithmetic_limit(model: Any, computed_tokens: int, threads: int, head_rows: int) -> float:
    """Seconds that the run's matrix products alone would take at the rate of a large product on these threads."""
    import time

    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    torch.mm(a, b)
    best = min(_timed(time.perf_counter, lambda: torch.mm(a, b)) for _ in range(10))
    rate = 2 * 1024**3 / best
    embedding: Any = model.get_input_embeddings()
    total = sum(parameter.numel() for parameter in model.parameters())
    head = embedding.weight.numel()
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    body = total - (head if tied else 2 * head)
    return float((2 * body * computed_tokens + 2 * head * head_rows) / rate)


def _timed(clock: Callable[[], float], work: Callable[[], object]) -> float:
    began = clock()
    work()
    return clock() - began


def run_mixed(model: str, *, threads: int, repeats: int, folder: Path | None = None, loops: bool = True) -> Figures:
    """Measures every contender `repeats` times in turn and returns the figures. Prints nothing."""
    import torch

    torch.set_num_threads(threads)
    figures = Figures()
    with tempfile.TemporaryDirectory() as scratch:
        base = load_base(model)
        folders = make_adapters(base, folder or Path(scratch), TASKS)
        settings = Settings(model=model, device="cpu", dtype="float32", threads=threads, kv_tokens=16384)
        adapters = [load_folder(path) for path in folders]
        ours = OfflineEngine(settings, adapters)
        ungrouped = OfflineEngine(settings.model_copy(update={"group_by_adapter": False}), adapters)
        vocabulary = ours.engine.spec.vocab_size
        jobs = make_jobs(REQUESTS, TASKS, lengths=LENGTHS, new_tokens=NEW_TOKENS, vocabulary=vocabulary)
        peers: list[Peer] = [PaddedBatch(base), GenerateBatch(base)]
        if loops:
            peers += [SetAdapter(base, folders), LoadEach(base, folders)]
        ours.run(jobs), peers[0].answer(jobs)  # warm-up
        for _ in range(repeats):
            for engine, name in ((ours, "softmux, 16 tasks, cold"), (ungrouped, "softmux, cold, arrival order")):
                engine.forget()
                cold = engine.run(jobs)
                figures.add(name, cold.rate)
                figures.counts[name] = cold
            _turn(figures, "softmux, 16 tasks", ours, jobs)
            _turn(figures, "softmux, bare model", ours, bare(jobs))
            for peer in peers:
                outcomes, _ = peer.run(Load(tuple(jobs), at_once(len(jobs)), ()))
                figures.add(peer.name, summarize(outcomes).output_throughput)
        last: Run = figures.counts["softmux, 16 tasks"]
        limit = arithmetic_limit(base, last.computed_tokens, threads, last.tokens)
        figures.counts["arithmetic limit, tokens/s"] = last.tokens / limit
        ours.close()
        ungrouped.close()
    return figures


def _turn(figures: Figures, name: str, engine: OfflineEngine, jobs: list[Job]) -> None:
    engine.forget_texts()
    run = engine.run(jobs)
    figures.add(name, run.rate)
    figures.counts[name] = run
