"""softmux's engine in this process, fed from folders: what the service and the peers are measured against."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

from softmux.bench.loads.arrivals import Arrivals, at_once
from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.workload import Job
from softmux.engine.engine import StepNews
from softmux.engine.local import LocalEngine
from softmux.errors import SoftmuxError
from softmux.types import SamplingParams


@dataclass(slots=True)
class Run:
    """One pass over a list of jobs: what it took, and each job's outcome."""

    seconds: float = 0.0
    tokens: int = 0
    steps: int = 0
    prefixes_computed: int = 0
    prefixes_copied: int = 0
    computed_tokens: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """New tokens a second."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class _Running:
    due: float
    sent: float
    prompt_tokens: int
    events: array[float] = field(default_factory=lambda: array("d"))
    tokens: int = 0

    def outcome(self, ended: float, error: str | None = None) -> Outcome:
        return Outcome(self.due, self.sent, ended, self.events, self.prompt_tokens, self.tokens, error)


class OfflineEngine(LocalEngine):
    """A `LocalEngine` that runs loads."""

    def run(self, jobs: list[Job]) -> Run:
        """Hands all jobs over at once, and steps until they are done. Raises what a request fails with."""
        return self.serve(jobs, at_once(len(jobs)), strict=True)

    def serve(self, jobs: list[Job], arrivals: Arrivals, *, strict: bool = False) -> Run:
        """Adds each job when it is due, between two steps, and steps until all are done. A request's failure is its
        outcome, or is raised (`strict`)."""
        engine, limit = self.engine, arrivals.concurrency or len(jobs)
        due = arrivals.times.tolist()
        done, running, outcomes = Run(), dict[str, _Running](), dict[int, Outcome]()
        began = time.perf_counter()
        added = 0
        while added < len(jobs) or running or not engine.idle:
            now = time.perf_counter() - began
            while added < len(jobs) and due[added] <= now and len(running) < limit:
                sent = due[added] if arrivals.concurrency is None else now  # waiting for a step to end is latency
                asked = _Running(due[added], sent, len(jobs[added].ids))
                try:
                    self._add(added, jobs[added])
                    running[str(added)] = asked
                except SoftmuxError as error:
                    if strict:
                        raise
                    outcomes[added] = asked.outcome(now, error.code)
                added += 1
            if not running and engine.idle:
                if added < len(jobs):
                    time.sleep(max(0.0, due[added] - now))
                continue
            news = self.step()
            self._count(news, done)
            now = time.perf_counter() - began
            for sequence, output in news.each():
                asked = running[sequence.id]
                asked.tokens += len(output.tokens)
                asked.events.append(now)
                if output.finish_reason is not None:
                    outcomes[int(sequence.id)] = running.pop(sequence.id).outcome(now)
            for sequence, failure in news.failed:
                if strict:
                    raise failure
                outcomes[int(sequence.id)] = running.pop(sequence.id).outcome(now, failure.code)
        done.seconds = time.perf_counter() - began
        done.outcomes = [outcomes[number] for number in range(len(jobs))]
        done.tokens = sum(outcome.tokens for outcome in done.outcomes)
        return done

    def _add(self, number: int, job: Job) -> None:
        place = self.place(job.task)
        sampling = SamplingParams(max_tokens=job.new_tokens, ignore_eos=True)
        self.engine.add(
            str(number), (*place.virtual, *job.ids), sampling, root=place.root, now=time.monotonic(),
            trained_prefix=place.trained_prefix,
        )  # fmt: skip

    @staticmethod
    def _count(news: StepNews, done: Run) -> None:
        if news.batch is not None and news.ran:
            done.steps += 1
            done.prefixes_computed += len(news.batch.saves)
            done.prefixes_copied += len(news.batch.loads)
            done.computed_tokens += news.batch.tokens


class OfflineTarget:
    """The engine as what loads are run on. Texts' keys and values are forgotten before each, the adapters' stay."""

    def __init__(self, name: str, engine: OfflineEngine) -> None:
        self.name = name
        self._engine = engine

    def run(self, load: Load) -> tuple[list[Outcome], None]:
        self._engine.forget_texts()
        return self._engine.serve(list(load.jobs), load.arrivals).outcomes, None

    def close(self) -> None:
        self._engine.close()
