"""What the worker counts, under the names that `softmux.telemetry` declares."""

from __future__ import annotations

import time
from bisect import bisect_left

import numpy as np

from softmux import __version__
from softmux.cost import cost
from softmux.engine.engine import Engine, StepNews
from softmux.scheduler.sequence import Sequence
from softmux.telemetry.metrics import BY_NAME, worker_buckets
from softmux.worker.device_memory import DeviceMemory
from softmux.worker.messages import Histogram, Stats
from softmux.worker.residents import Residents
from softmux.worker.throughput import Throughput


class _Counts:
    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.buckets, value)] += 1
        self.sum += value

    def snapshot(self) -> Histogram:
        total, cumulative = 0, []
        for count in self.counts:
            total += count
            cumulative.append(total)
        return Histogram(tuple(cumulative), self.sum)


def _cost(sequence: Sequence) -> float:
    new = sequence.sampling.max_tokens - sequence.generated if sequence.reading is None else 0
    return cost(sequence.prompt_length, new)


class WorkerStats:
    """Counts what steps bring; `snapshot` adds the engine's present state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.residents = Residents(engine, engine.tiers.slots.capacity)
        self._memory = DeviceMemory(engine.model.device)
        self._methods = {method: number for number, (method,) in enumerate(BY_NAME["engine_rows_total"].known)}
        self._method_of = np.zeros(len(engine.scheduler.table.tokens), np.int64)
        """By row of the table, the number of its sequence's method."""
        self._rows = np.zeros(len(self._methods), np.int64)
        self._histograms = {name: _Counts(buckets) for name, buckets in worker_buckets().items()}
        self._throughput = Throughput()
        self._generated = 0
        self._computed = 0
        self._prefixes = 0
        self._swapped = 0

    def observe(self, news: StepNews) -> None:
        for sequence, output in news.outputs:
            self._generated += len(output.tokens)
            if output.queue_seconds:
                self._throughput.began(_cost(sequence))
                self._histograms["request_queue_time_seconds"].observe(output.queue_seconds)
        if news.plain is not None:
            self._generated += len(news.plain)
        for name, durations in (
            ("adapter_load_seconds", self._engine.tiers.counts.seconds),
            ("grammar_compile_seconds", self._engine.grammars.seconds),
            ("grammar_mask_seconds", self._engine.runner.masks.seconds),
        ):
            for seconds in durations.take():
                self._histograms[name].observe(seconds)
        if news.batch is None or not news.ran:
            return
        self._computed += news.batch.tokens
        self._prefixes += len(news.batch.saves)
        self._swapped += len(news.batch.loads)
        for chunk in news.batch.chunks:  # whoever has a row came to it by a chunk of its input
            self._method_of[chunk.row] = self._methods[chunk.sequence.method]
        self._rows += np.bincount(self._method_of[news.batch.rows], minlength=len(self._rows))
        self._histograms["step_seconds"].observe(news.seconds)
        self._histograms["batch_rows"].observe(len(news.batch))
        self._histograms["batch_adapters"].observe(news.batch.adapters)

    def measure(self, now: float) -> None:
        """Called some twice a second."""
        scheduler = self._engine.scheduler
        full = len(scheduler.waiting) > 0 or not scheduler.table.free
        self._throughput.tick(now, full=full, done=cost(self._computed - self._generated, self._generated))

    def snapshot(self) -> Stats:
        engine, disk = self._engine, self._engine.tiers.loader.disk
        scheduler, tiers, ways = engine.scheduler, engine.tiers, engine.runner.ways
        used = scheduler.cache.pool.capacity - scheduler.cache.pool.free
        queues: dict[str, tuple[float, float]] = {}
        for sequence in scheduler.waiting:
            before, _ = queues.get(sequence.root.tenant, (0.0, 0.0))
            queues[sequence.root.tenant] = before + _cost(sequence), sequence.weight
        return Stats(
            counters={
                "engine_steps_total": engine.steps,
                "engine_step_tokens_total": self._computed,
                "engine_generated_tokens_total": self._generated,
                "prefix_cache_queries_total": scheduler.prefix_queries,
                "prefix_cache_hits_total": scheduler.prefix_hits,
                "requests_shed_total": engine.shortage.refused,
                "num_preemptions_total": scheduler.preemptions,
                "adapter_prefixes_computed_total": self._prefixes,
                "adapter_prefixes_copied_total": self._swapped,
                "adapter_vector_swaps_total": engine.runner.vocabulary.swaps,
                "lora_slot_loads_total": tiers.slots.loads,
                "grammar_masks_total": engine.runner.masks.rows,
            },
            gauges={
                "num_requests_running": scheduler.table.taken,
                "num_requests_waiting": len(scheduler.waiting),
                "num_requests_with_grammar": int((scheduler.table.guided & scheduler.table.seated).sum()),
                "grammars_kept": len(engine.grammars),
                "queue_cost": sum(waits for waits, _ in queues.values()),
                "queue_cost_per_second": self._throughput.rate,
                "step_token_limit": engine.shortage.limit or scheduler.max_step_tokens,
                "kv_cache_usage_perc": used / scheduler.cache.pool.capacity,
                "prefix_cache_tokens": scheduler.cache.tree.tokens,
                "adapters_in_host_memory": tiers.resident,
                "adapters_host_bytes": tiers.host_bytes,
                "adapters_with_resident_vectors": engine.runner.vocabulary.resident,
                "lora_slots_in_use": tiers.slots.in_use,
                "lora_slots_resident": tiers.slots.resident,
                "lora_slots_capacity": tiers.slots.capacity,
                "adapters_host_capacity_bytes": tiers.budget,
                "adapters_on_disk": 0 if disk is None else len(disk),
                "adapters_disk_bytes": 0 if disk is None else disk.used,
                "adapters_disk_capacity_bytes": 0 if disk is None else disk.budget,
                "kv_cache_capacity_tokens": scheduler.cache.pool.capacity,
                "lora_requests_info": time.time(),
                **self._memory.read(),
                "model_weight_bytes": engine.spec.weight_bytes,
            },
            histograms={name: counts.snapshot() for name, counts in self._histograms.items()},
            labelled={
                "adapter_loads_total": {tier: float(count) for tier, count in tiers.counts.loads.items()},
                "adapter_files_damaged_total": {
                    "disk": float(tiers.loader.damaged_on_disk),
                    "registry": float(tiers.counts.damaged),
                },
                "engine_rows_total": dict(zip(self._methods, self._rows.astype(float).tolist(), strict=True)),
                "grammar_cache_total": {"hit": float(engine.grammars.hits), "miss": float(engine.grammars.misses)},
                "engine_step_ways_total": {way: float(count) for way, count in ways.steps.items()},
                "fast_path_fallbacks_total": {path: float(count) for path, count in ways.fallbacks.items()},
                "out_of_memory_total": {answer: float(count) for answer, count in engine.shortage.counts.items()},
            },
            infos={
                "fast_paths_info": ways.in_use,
                "lora_requests_info": self.residents.told(),
                "server_info": {
                    "version": __version__,
                    "model": engine.spec.model_id,
                    "dtype": engine.spec.dtype,
                    "device": engine.spec.device,
                },
            },
            queues=queues,
        )
