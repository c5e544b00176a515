"""softmux's engine in this process, fed from folders: what the service and the peers are measured against."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from softmux.bench.workload import Job
from softmux.engine.engine import Engine
from softmux.formats.folder import read_adapter
from softmux.formats.layout import virtual_ids
from softmux.scheduler.radix import RootKey
from softmux.settings import Settings
from softmux.types import DEFAULT_TENANT, SamplingParams


@dataclass(slots=True)
class Run:
    """One pass over a list of jobs. Times in seconds, by job, from the moment all were handed over."""

    seconds: float
    tokens: int
    steps: int
    prefixes_computed: int
    prefixes_copied: int
    computed_tokens: int
    first_token: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """New tokens a second."""
        return self.tokens / self.seconds


class OfflineEngine:
    """An `Engine` and its adapters by task number. `run` hands all jobs over at once and steps until they are done."""

    def __init__(
        self, settings: Settings, adapters: Iterable[Mapping[str, bytes]], disk_folder: Path | None = None
    ) -> None:
        self._files: dict[str, Mapping[str, bytes]] = {}
        self.engine = Engine(settings, self._source, disk_folder=disk_folder)
        self._tasks: list[tuple[RootKey, tuple[int, ...]]] = []
        for files in adapters:
            manifest = read_adapter(files, self.engine.spec).manifest
            self._files[manifest.digest] = files
            root = self.engine.key(DEFAULT_TENANT, manifest.digest)
            self._tasks.append((root, virtual_ids(manifest.virtual_tokens)))
        self._bare = self.engine.key(DEFAULT_TENANT, None)

    def _source(self, key: RootKey) -> Mapping[str, bytes]:
        return self._files[key.digest or ""]

    def task(self, number: int) -> tuple[RootKey, tuple[int, ...]]:
        """A task's key in the caches, and its virtual ids."""
        return self._tasks[number]

    def forget(self) -> None:
        """Makes everything cold: no KV in the pool, no adapter in host memory."""
        engine = self.engine
        self.forget_texts()
        for root, _ in self._tasks:
            engine.tiers.forget(root)
            engine.runner.vocabulary.forget(root)

    def forget_texts(self) -> None:
        """Empties the KV pool but leaves the adapters in host memory."""
        self.engine.scheduler.cache.clear()

    def run(self, jobs: list[Job]) -> Run:
        engine = self.engine
        began = time.perf_counter()
        now = time.monotonic()
        for number, job in enumerate(jobs):
            root, lead = self.task(job.task) if job.task is not None else (self._bare, ())
            sampling = SamplingParams(max_tokens=job.new_tokens, ignore_eos=True)
            engine.add(str(number), (*lead, *job.ids), sampling, root=root, now=now)
        done = Run(0.0, 0, 0, 0, 0, 0, [0.0] * len(jobs))
        seen: set[str] = set()
        while engine.scheduler.running or len(engine.scheduler.waiting):
            news = engine.step()
            if news.failed:
                raise news.failed[0][1]
            if news.batch is not None and news.ran:
                done.steps += 1
                done.prefixes_computed += len(news.batch.saves)
                done.prefixes_copied += len(news.batch.loads)
                done.computed_tokens += news.batch.tokens
            for sequence, output in news.each():
                done.tokens += len(output.tokens)
                if sequence.id not in seen:
                    seen.add(sequence.id)
                    done.first_token[int(sequence.id)] = time.perf_counter() - began
        done.seconds = time.perf_counter() - began
        return done

    def close(self) -> None:
        self.engine.close()
