"""A load: which requests come when, drawn anew for each repeat and the same for every target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from softmux.bench.loads.arrivals import Arrivals, at_once, paced_times
from softmux.bench.loads.lengths import Lengths
from softmux.bench.loads.mixes import TaskMix
from softmux.bench.loads.trace import TraceLine
from softmux.bench.loads.workload import Job
from softmux.errors import InvalidRequest

_SPECIAL = 10
"""Ids below this are left out of random prompts where the vocabulary allows: the special ones are mostly there."""


@dataclass(frozen=True, slots=True)
class Load:
    """Job `i` is sent at `arrivals.times[i]`, for the task named `tasks[job.task]`."""

    jobs: tuple[Job, ...]
    arrivals: Arrivals
    tasks: tuple[str, ...]

    def share(self, part: int, parts: int) -> Load:
        return Load(self.jobs[part::parts], self.arrivals.share(part, parts), self.tasks)

    def backwards(self) -> Load:
        """The same requests with their prompts' ids the other way round: as long, and no prompt begins as one here
        does, so that whoever runs both on one server finds nothing in its cache."""
        return replace(self, jobs=tuple(replace(job, ids=job.ids[::-1]) for job in self.jobs))

    def bare(self) -> Load:
        """The same prompts at the same times, for the bare model."""
        return replace(self, jobs=tuple(replace(job, task=None) for job in self.jobs))


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for on the command line; `load` draws from it."""

    tasks: tuple[str, ...]
    vocabulary: int
    requests: int
    mix: TaskMix
    input_len: Lengths
    output_len: Lengths
    request_rate: float
    burstiness: float = 1.0
    concurrency: int | None = None
    trace: tuple[TraceLine, ...] = ()
    warmups: int = 0
    seed: int = 0

    def load(self, repeat: int) -> Load:
        """The load of a repeat: a seed of its own, so that no prompt is met again."""
        draw = np.random.default_rng([self.seed, repeat])
        if self.trace:
            return self._traced(draw)
        count = self.requests
        numbers = self.mix.draw(count, len(self.tasks), draw)
        times = paced_times(count, self.request_rate, draw, burstiness=self.burstiness)
        return Load(self._jobs(numbers, draw), Arrivals(times, self.concurrency), self.tasks)

    def warmup(self) -> Load:
        """Requests before the first repeat, counted nowhere: the tasks in turn, as many at once as later on."""
        draw = np.random.default_rng([self.seed, 1 << 32])
        tasks = len(self.tasks)
        numbers = [number % tasks if tasks and self.mix.bare_share < 1 else None for number in range(self.warmups)]
        limit = min(self.concurrency or 64, self.warmups)
        return Load(self._jobs(numbers, draw), at_once(self.warmups, limit or None), self.tasks)

    def _jobs(self, numbers: Sequence[int | None], draw: np.random.Generator) -> tuple[Job, ...]:
        prompts = self.input_len.draw(len(numbers), draw)
        replies = self.output_len.draw(len(numbers), draw)
        rows = zip(numbers, prompts, replies, strict=True)
        return tuple(Job(task, self._ids(length, draw), new) for task, length, new in rows)

    def _ids(self, length: int, draw: np.random.Generator) -> tuple[int, ...]:
        low = min(_SPECIAL, self.vocabulary - 1)
        return tuple(draw.integers(low, self.vocabulary, length).tolist())

    def _traced(self, draw: np.random.Generator) -> Load:
        names = {name: number for number, name in enumerate(self.tasks)}
        jobs = []
        for line in self.trace:
            if line.task is not None and line.task not in names:
                raise InvalidRequest(f"The trace asks for the task {line.task!r}, which is not there.", param="trace")
            task = None if line.task is None else names[line.task]
            if isinstance(line.prompt, str):
                jobs.append(Job(task, (), line.max_tokens, line.prompt))
            else:
                jobs.append(Job(task, line.prompt or self._ids(line.input_length or 1, draw), line.max_tokens))
        times = np.array([line.seconds for line in self.trace])
        return Load(tuple(jobs), Arrivals(times, self.concurrency), self.tasks)

    def words(self) -> str:
        """One line that says what comes when."""
        if self.trace:
            return f"{len(self.trace)} requests of a trace over {self.trace[-1].seconds:.1f} s"
        prompts = f"{self.requests} requests, prompts {self.input_len.text}, replies {self.output_len.text} tokens"
        tasks = f"{len(self.tasks)} tasks, {self.mix.words()}" if self.tasks else "the bare model"
        return f"{prompts}; {tasks}; {self._arrival_words()}"

    def _arrival_words(self) -> str:
        limit = f"{self.concurrency} at a time" if self.concurrency else ""
        if np.isinf(self.request_rate):
            return limit or "all at once"
        kind = "Poisson" if self.burstiness == 1 else f"gamma {self.burstiness:g}"
        return f"{kind}, {self.request_rate:g}/s" + (f", at most {limit}" if limit else "")


def tokenized(plan: Plan, encode: Callable[[str], Sequence[int]]) -> Plan:
    """The plan with the trace's texts as ids, for a target that takes no text."""
    lines = [
        line.model_copy(update={"prompt": tuple(encode(line.prompt))}) if isinstance(line.prompt, str) else line
        for line in plan.trace
    ]
    return replace(plan, trace=tuple(lines))
