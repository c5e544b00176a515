"""What an engine did in each run of a load: a rate alone does not say whether it made more steps, or slower ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.target import Target
from softmux.engine.engine import Engine
from softmux.telemetry.metrics import PREFIX


@dataclass(frozen=True, slots=True)
class Work:
    """Forward passes by the way they ran, and input tokens that were found in the prefix cache."""

    steps: dict[str, int] = field(default_factory=dict)
    found_tokens: int = 0

    def since(self, before: Work) -> Work:
        steps = {way: count - before.steps.get(way, 0) for way, count in self.steps.items()}
        return Work(steps, self.found_tokens - before.found_tokens)


def work_of(engine: Engine) -> Work:
    steps = {str(way): count for way, count in engine.runner.ways.steps.items()}
    return Work(steps, engine.scheduler.prefix_hits)


def work_at(url: str) -> Work:
    """Of the engine of the server at `url`, by its `/metrics`."""
    reply = httpx.get(f"{url}/metrics").raise_for_status()
    samples = [one for family in text_string_to_metric_families(reply.text) for one in family.samples]
    steps = {one.labels["way"]: int(one.value) for one in samples if one.name == f"{PREFIX}engine_step_ways_total"}
    return Work(steps, int(sum(one.value for one in samples if one.name == f"{PREFIX}prefix_cache_hits_total")))


class CountedTarget:
    """`target`, with what the engine behind it did in each run; `read` tells what it has done by now."""

    def __init__(self, target: Target, read: Callable[[], Work]) -> None:
        self.name = target.name
        self.runs: list[Work] = []
        self._target, self._read = target, read

    def run(self, load: Load) -> tuple[list[Outcome], float | None]:
        before = self._read()
        found = self._target.run(load)
        self.runs.append(self._read().since(before))
        return found

    def close(self) -> None:
        self._target.close()


def print_work(console: Console, targets: Sequence[CountedTarget], repeats: int) -> None:
    """Of the last `repeats` runs of each."""
    table = Table("in each repeat", "steps", "tokens found in the cache")
    for target in targets:
        for number, work in enumerate(target.runs[-repeats:]):
            steps = ", ".join(f"{count:,} {way}" for way, count in work.steps.items() if count)
            table.add_row("" if number else target.name, steps or "–", f"{work.found_tokens:,}")
    console.print(table)


def work_json(targets: Sequence[CountedTarget], repeats: int) -> dict[str, Any]:
    return {target.name: [asdict(work) for work in target.runs[-repeats:]] for target in targets}
