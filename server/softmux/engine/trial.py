"""A few sequences run to their end by a scheduler of their own: how the self-tests try a model before it is served."""

from __future__ import annotations

from collections.abc import Iterator

from softmux.engine.runner import ModelRunner
from softmux.errors import SelfTestFailed
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.types import ModelSpec, Output, TokenLogprobs


def trial_scheduler(runner: ModelRunner, spec: ModelSpec, *, rows: int, step_tokens: int) -> Scheduler:
    """Over the runner's own pool and tiers, for `rows` rows at most; nothing ends a sequence but its length."""
    return Scheduler(
        slots=runner.pool.slots,
        max_rows=min(rows, runner.max_rows),
        max_step_tokens=step_tokens,
        context_length=spec.context_length,
        eos=(),
        shelf=runner.tiers,
    )


def run_trial(runner: ModelRunner, scheduler: Scheduler) -> Iterator[tuple[Sequence, Output]]:
    """Steps, one after the other, until nothing is left; what each brings. Raises what a step or an adapter raised."""
    while scheduler.running or len(scheduler.waiting):
        batch, failed = scheduler.next(0.0)
        if failed:
            raise failed[0][1]
        try:
            output = runner.collect(runner.launch(batch))
        except Exception:
            scheduler.step_failed(batch)
            raise
        yield from scheduler.update(batch, output, 0.0).each()


def generated(runner: ModelRunner, scheduler: Scheduler) -> dict[str, list[TokenLogprobs]]:
    """What each sequence of a trial told of the tokens it chose, by its id. Raises as `run_trial`, and `SelfTestFailed`
    where a row ended early."""
    told: dict[str, list[TokenLogprobs]] = {}
    for sequence, output in run_trial(runner, scheduler):
        if output.finish_reason == "abort":
            raise SelfTestFailed("self-test: the model gives logits that are not finite")
        told.setdefault(sequence.id, []).extend(output.logprobs)
    return told
