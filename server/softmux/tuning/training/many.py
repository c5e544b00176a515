"""Many tasks trained at once over one frozen base.

`step` is the story: every task that is in draws its next rows; all rows are packed and go through the base together;
each task's numbers are updated by its own gradient; those that are due are validated; those that are done leave, and
the next ones come in. What becomes of a task does not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from softmux.errors import SoftmuxError
from softmux.tuning.frozen.module import FrozenModule
from softmux.tuning.frozen.packing import Packed, Place, Placed, Prepared, pack, prepare
from softmux.tuning.frozen.room import tokens_at_once
from softmux.tuning.training.cohort import Adam, Cohort, Start, tables_of
from softmux.tuning.training.job import Active, Finished, Job
from softmux.tuning.training.trainer import Progress, batches

Watch = Callable[[str, Progress], None]


class Trainer:
    """`tokens`: how many go through the base in one forward and backward, which bounds the memory whatever the number
    of tasks; halved where the device turns out to have too little. `at_once`: how many tasks are in together."""

    def __init__(self, base: FrozenModule, *, tokens: int | None = None, at_once: int = 64) -> None:
        self.base = base
        self.tokens = tokens or tokens_at_once(base)
        self.at_once = at_once
        self.waiting: deque[Job] = deque()
        self.active: list[Active] = []
        self.finished: list[Finished] = []
        self._cohorts: list[Cohort] = []
        self._shapes: dict[int, tuple[object, ...]] = {}

    # --- coming and going --------------------------------------------------------------------------------------------

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    def admit(self) -> None:
        """Lets waiting jobs in as far as there is room."""
        while self.waiting and len(self.active) < self.at_once:
            self.enter(self.waiting.popleft())

    def enter(self, job: Job, values: Sequence[torch.Tensor] | None = None, adam: Adam | None = None) -> Active:
        """Lets a job in, from its start or, where `values` and `adam` are given, from where it was."""
        cohort = self._cohort(job.start)
        own = list(job.start.values().values()) if values is None else list(values)
        cohort.add(own, adam, job.start)
        active = Active(
            job,
            cohort,
            batches(job.rows, job.how),
            {},
            [prepare(row, job.prefix, 0.0) for row in job.validation],
            [value.detach().to(self.base.device, torch.float32).clone() for value in own],
        )
        self.active.append(active)
        return active

    def _cohort(self, start: Start) -> Cohort:
        for cohort in self._cohorts:
            if self._shapes[id(cohort)] == start.shape:
                return cohort
        cohort = Cohort(start, self.base.device)
        self._cohorts.append(cohort)
        self._shapes[id(cohort)] = start.shape
        return cohort

    def _leave(self, active: Active, error: str | None = None) -> None:
        active.cohort.remove(self.index(active))
        self.active.remove(active)
        if not active.cohort.size:
            self._cohorts.remove(active.cohort)
            del self._shapes[id(active.cohort)]
        values = dict(zip(active.cohort.names, active.best, strict=True))
        self.finished.append(Finished(active.job.name, active.trained(), values, error))

    def index(self, active: Active) -> int:
        """Members are in their cohort in the order that they came."""
        return [other for other in self.active if other.cohort is active.cohort].index(active)

    # --- a step ------------------------------------------------------------------------------------------------------

    def run(self, watch: Watch = lambda _name, _progress: None, after: Callable[[], None] = lambda: None) -> None:
        """Until nobody is left. `watch` is told of every task's steps, `after` is called behind each step of all."""
        with self.base.running():
            self.admit()
            while self.active:
                self.step(watch)
                self.admit()
                after()

    def step(self, watch: Watch = lambda _name, _progress: None) -> None:
        """One step of every task that is in. Within `base.running()`."""
        members = list(self.active)
        self._validate([one for one in members if one.job.measures_start and not one.step and not one.validations])
        losses = self.gradients([active.next_rows() for active in members]).tolist()
        for cohort in self._cohorts:
            cohort.update([active.rates for active in members if active.cohort is cohort])
        for active, loss in zip(members, losses, strict=True):
            active.losses.append(loss)
        broken = [active for active in members if not math.isfinite(active.losses[-1])]
        self._validate([active for active in members if active.due and active not in broken])
        for active in members:
            seen = active.validations[-1][1] if active.validations else None
            watch(active.job.name, Progress(active.step, active.losses[-1], seen))
        for active in broken:
            said = f"The loss is {active.losses[-1]} at step {active.step}: lower train.learning_rate."
            self._leave(active, said)
        for active in members:
            if active not in broken and active.done:
                self._leave(active)

    def gradients(self, rows: Sequence[Sequence[Prepared]]) -> torch.Tensor:
        """Each active task's loss `[tasks]` on its `rows`; its gradient is then on its cohort's stacked values."""
        while True:
            try:
                return self._gradients(rows)
            except torch.cuda.OutOfMemoryError:
                if self.tokens <= 256:
                    raise SoftmuxError("The device has too little memory to train on this base.") from None
                self.tokens //= 2
                self.base.detach()
                torch.cuda.empty_cache()

    def _gradients(self, rows: Sequence[Sequence[Prepared]]) -> torch.Tensor:
        for cohort in self._cohorts:
            cohort.leaves()
        made = [cohort.made() for cohort in self._cohorts]
        tables, parts = tables_of(self._cohorts, made)
        placed = self._placed(rows, training=True)
        losses = torch.zeros(len(self.active), device=self.base.device)
        for few in self.base.packs(placed, self.tokens):
            packed = pack(few, self.base.device)
            own = self.base.losses(packed, tables, self._noise(few)) * packed.shares
            if own.requires_grad:
                own.sum().backward()
            self.base.detach()
            losses.index_add_(0, packed.owners, own.detach())
        grown = [(part, leaf.grad) for part, leaf in parts if leaf.grad is not None]
        if grown:
            torch.autograd.backward([part for part, _ in grown], [gradient for _, gradient in grown])
        return losses

    def _placed(self, rows: Sequence[Sequence[Prepared]], *, training: bool) -> list[Placed]:
        places = self._places()
        placed = []
        for active, own in zip(self.active, rows, strict=True):
            total = sum(float(row.kept.sum()) for row in own) if training else 1.0
            place = replace(places[id(active)], total=total)
            placed += [(row, place) for row in own]
        return placed

    def _places(self) -> Mapping[int, Place]:
        """Of each active task, by its `id`: where its vectors, or its prefix, begin in the step's tables, its LoRA and
        its head; without its total."""
        numbers = {id(active): number for number, active in enumerate(self.active)}
        vectors = prefixes = 0
        found = {}
        for number, cohort in enumerate(self._cohorts):
            for index, active in enumerate(other for other in self.active if other.cohort is cohort):
                found[id(active)] = Place(
                    numbers[id(active)],
                    vectors,
                    prefixes,
                    cohort.outputs if cohort.is_prefix else 0,
                    low_rank=(number, index) if cohort.has_low_rank else None,
                    head=(number, index) if cohort.has_head else None,
                )
                vectors += 0 if cohort.is_prefix else cohort.outputs
                prefixes += cohort.outputs if cohort.is_prefix else 0
        return found

    def _noise(self, few: Sequence[Placed]) -> torch.Tensor | None:
        """NEFTune's (arXiv 2310.05914): uniform, of size `noise / sqrt(length · width)`, on the input's own tokens. It
        is drawn by task, step and row, so that neighbours change nothing."""
        strengths = [self.active[place.number].job.how.noise for _, place in few]
        if not any(strengths):
            return None
        width = int(self.base.model.get_input_embeddings().weight.shape[1])
        parts = []
        for (row, place), strength in zip(few, strengths, strict=True):
            part = torch.zeros(row.length, width)
            if strength:
                active = self.active[place.number]
                seed = (active.job.how.seed, active.step, *row.ids.tolist())
                generator = torch.Generator().manual_seed(hash(seed) % (1 << 62))
                inputs = row.length - row.answer_tokens
                size = strength / math.sqrt(row.length * width)
                part[:inputs].uniform_(-size, size, generator=generator)
            parts.append(part)
        return torch.cat(parts).to(self.base.device)

    # --- validation --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _validate(self, due: Sequence[Active]) -> None:
        """The mean loss a token over the validation rows of those that are due, and what is best of each."""
        if not due:
            return
        rows = [active.validation if active in due else [] for active in self.active]
        sums, exact = self._without_gradients(rows)
        for active in due:
            tokens, number = sum(float(row.kept.sum()) for row in active.validation), self.active.index(active)
            active.validations.append((active.step, sums[number] / tokens))
            active.exact.append(exact[number] / len(active.validation))
            if active.validations[-1][1] < active.best_loss:
                active.best_step, active.best_loss = active.validations[-1]
                active.best = active.cohort.member(self.index(active))

    def _without_gradients(self, rows: Sequence[Sequence[Prepared]]) -> tuple[list[float], list[float]]:
        """Of each active task: the sum of its targets' losses, and how many of its rows are answered exactly."""
        tables, _ = tables_of(self._cohorts, [cohort.made() for cohort in self._cohorts])
        sums = torch.zeros(len(self.active), dtype=torch.float64, device=self.base.device)
        exact = torch.zeros_like(sums)
        for few in self.base.packs(self._placed(rows, training=False), self.tokens):
            packed: Packed = pack(few, self.base.device)
            losses, right = self.base.scored(packed, tables)
            sums.index_add_(0, packed.owners, (losses * packed.shares).double())
            row_of = torch.bucketize(packed.wanted, packed.cu_q[1:], right=True)
            wrong = torch.zeros(len(few), device=self.base.device).index_add_(0, row_of, (~right).float())
            owners = torch.tensor([place.number for _, place in few], device=self.base.device)
            exact.index_add_(0, owners, (wrong == 0).double())
        return sums.tolist(), exact.tolist()

    def measure(self, jobs: Sequence[Job]) -> list[float]:
        """The mean loss a token of each job's start on its validation rows, `at_once` of them in a batch; nobody is in
        before or after, and nothing is learned."""
        found: list[float] = []
        with self.base.running():
            for begin in range(0, len(jobs), self.at_once):
                group = [self.enter(job) for job in jobs[begin : begin + self.at_once]]
                self._validate(group)
                found += [active.validations[-1][1] for active in group]
                for active in group:
                    self._leave(active)
                self.finished.clear()
        return found
