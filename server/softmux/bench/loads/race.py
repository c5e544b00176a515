"""Several targets over the same loads, taking turns: what one run of the bench measures."""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from softmux.bench.loads.load import Load, Plan
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.slo import Slo
from softmux.bench.loads.summary import Summary, summarize
from softmux.bench.loads.target import Target


@dataclass(frozen=True, slots=True)
class Contender:
    """A target with what it does to a load before it is run: the bare model's contender leaves the tasks away."""

    name: str
    target: Target
    change: Callable[[Load], Load] = lambda load: load


@dataclass(slots=True)
class Race:
    """By contender, a summary a repeat; and the last repeat's outcomes."""

    summaries: dict[str, list[Summary]] = field(default_factory=dict)
    last: dict[str, Sequence[Outcome]] = field(default_factory=dict)

    def ratios(self) -> Mapping[str, list[float]]:
        """Output throughput of every contender over the first one's in the same repeat."""
        first, *others = self.summaries
        base = [summary.output_throughput for summary in self.summaries[first]]
        return {
            name: [
                summary.output_throughput / other
                for summary, other in zip(self.summaries[name], base, strict=True)
                if other
            ]
            for name in others
        }


@contextlib.contextmanager
def closing(contenders: Sequence[Contender]) -> Iterator[None]:
    """Closes their targets at the end, each once: contenders may share one."""
    try:
        yield
    finally:
        for target in {id(contender.target): contender.target for contender in contenders}.values():
            target.close()


def run_race(
    plan: Plan,
    contenders: Sequence[Contender],
    *,
    repeats: int,
    slo: Slo | None = None,
    watch: Callable[[str, Summary], None] = lambda name, summary: None,
) -> Race:
    """Warms every contender up, then gives each the same load `repeats` times over; who begins changes from repeat to
    repeat, so that a drift of the machine falls on all alike. `watch` hears of each run as it ends."""
    race = Race({contender.name: [] for contender in contenders})
    warmup = plan.warmup()
    for contender in contenders:
        if warmup.jobs:
            contender.target.run(contender.change(warmup))
    with _heap_at_rest():
        _run(race, plan, contenders, repeats, slo, watch)
    return race


def _run(
    race: Race,
    plan: Plan,
    contenders: Sequence[Contender],
    repeats: int,
    slo: Slo | None,
    watch: Callable[[str, Summary], None],
) -> None:
    for repeat in range(repeats):
        load = plan.load(repeat)
        turn = repeat % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            outcomes, busy = contender.target.run(contender.change(load))
            summary = summarize(outcomes, slo=slo, client_busy=busy)
            race.summaries[contender.name].append(summary)
            race.last[contender.name] = outcomes
            watch(contender.name, summary)


@contextlib.contextmanager
def _heap_at_rest() -> Iterator[None]:
    """Takes what was loaded out of the collector's sight, as the worker does: a collection over the objects of several
    models takes some 0.3 s, and would fall on whoever's turn it is. There is one such place for all: where others have
    put objects there, what was loaded stays with theirs."""
    others = gc.get_freeze_count()
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not others:
            gc.unfreeze()


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)
