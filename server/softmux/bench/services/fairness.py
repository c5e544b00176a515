"""What a neighbour costs a tenant: `softmux bench fairness`.

Two tenants share an engine in this process. The victim asks for less than its share; its neighbour first for its fair
share, then for ten times that. Beside the server's own scheduling the second is also run first come, first served
(every token costs nothing, so no tenant is told from another). Last, both ask for more than there is: what each is
served over time shows how far two tenants that wait come apart, and how far the counters allow it
(docs/architecture.md, Fairness). All take turns, `--repeats` times.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.table import Table

from softmux.bench.bases.tiny import tiny_model
from softmux.bench.loads.arrivals import paced_times
from softmux.bench.loads.plot import check_plot
from softmux.bench.loads.report import wide_console, write_json
from softmux.engine.engine import Engine, StepNews
from softmux.scheduler.batch import Batch
from softmux.scheduler.counters import INPUT_COST, OUTPUT_COST
from softmux.settings import Settings
from softmux.types import SamplingParams

TENANTS = ("victim", "neighbour")
PROMPT, NEW = 20, 16
_LEAST_ID = 10


@dataclass(frozen=True, slots=True)
class Case:
    """`loads`: what each of `TENANTS` asks for, as a share of what the engine can do."""

    name: str
    loads: tuple[float, float]
    fair: bool = True


SHARE = Case("neighbour at its fair share", (0.3, 0.5))
TEN = Case("neighbour at ten times that", (0.3, 5.0))
TEN_IN_ORDER = Case("the same, first come, first served", (0.3, 5.0), fair=False)
BOTH = Case("both beyond their shares", (1.0, 5.0))
BOTH_IN_ORDER = Case("the same, first come, first served", (1.0, 5.0), fair=False)
CASES = (SHARE, TEN, TEN_IN_ORDER, BOTH, BOTH_IN_ORDER)


@dataclass(slots=True)
class Served:
    """One run of a case. `at` seconds of each step's end, `had` `[steps, 2]` what had been computed for each tenant by
    then, in the scheduler's costs; `both`, whether both waited for a row before and after the step."""

    at: NDArray[np.float64]
    had: NDArray[np.float64]
    both: NDArray[np.bool_]
    rate: float
    """New tokens a second while requests came."""
    waits: NDArray[np.float64]
    """Seconds from when a request of the victim was due to its end; to the run's end where it had none by then."""
    unfinished: int

    @property
    def gap(self) -> float:
        """By how much service differed at most, over any stretch in which both waited all the while."""
        difference = self.had[:, 0] - self.had[:, 1]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], self.both.astype(np.int8), [0]])))
        stretches = zip(edges[::2], edges[1::2], strict=True)
        return float(max((np.ptp(difference[begin:end]) for begin, end in stretches), default=0.0))


def make_engine(rows: int) -> Engine:
    """The tiny model on the CPU, with room for every row at its longest."""
    settings = Settings(
        model="fairness", device="cpu", dtype="float32", kv_tokens=2 * rows * (PROMPT + NEW), max_rows=rows,
        max_step_tokens=4 * rows, max_waiting=1 << 20,
    )  # fmt: skip

    def nothing(_key: object) -> dict[str, bytes]:
        raise LookupError("the bare model has no files")

    return Engine(settings, nothing, model=tiny_model(torch.device("cpu")))


def bound(rows: int) -> float:
    """2 U = 2 max(w_p L_input, w_q M), of equal weights; M is what a full batch's rows come to."""
    return 2 * max(INPUT_COST * PROMPT, OUTPUT_COST * rows * (PROMPT + NEW))


class Drive:
    """Requests of the two tenants at times of their own, on one engine, one run after another."""

    def __init__(self, engine: Engine, seed: int = 0) -> None:
        self.engine = engine
        self._draw = np.random.default_rng(seed)
        self._number = 0
        self._vocabulary = engine.spec.vocab_size

    def capacity(self, requests: int) -> float:
        """Requests a second when all come at once."""
        for _ in range(requests):
            self._add(TENANTS[0])
        began = time.perf_counter()
        while not self.engine.idle:
            self.engine.step()
        return requests / (time.perf_counter() - began)

    def run(self, case: Case, capacity: float, seconds: float) -> Served:
        """Requests come for `seconds`. Those of the victim are then waited for as long again; the rest is given up."""
        with self._costs(case.fair):
            return self._run(case, capacity, seconds)

    @contextmanager
    def _costs(self, fair: bool) -> Iterator[None]:
        counters = self.engine.scheduler.counters
        costs = counters.input_cost, counters.output_cost
        if not fair:
            counters.input_cost = counters.output_cost = 0.0
        try:
            yield
        finally:
            counters.input_cost, counters.output_cost = costs

    def _run(self, case: Case, capacity: float, seconds: float) -> Served:
        due = sorted(
            (at, tenant)
            for tenant, load in zip(TENANTS, case.loads, strict=True)
            for at in paced_times(round(load * capacity * seconds), load * capacity, self._draw).tolist()
        )
        open_, waits = dict[str, float](), list[float]()
        at, had, both = list[float](), list[tuple[float, float]](), list[bool]()
        totals, tokens, added = [0.0, 0.0], 0, 0
        waiting = self.engine.scheduler.waiting
        began = time.perf_counter()
        now = 0.0
        while now < 2 * seconds and (now < seconds or open_):
            while added < len(due) and due[added][0] <= now:
                name = self._add(due[added][1])
                if due[added][1] == TENANTS[0]:
                    open_[name] = due[added][0]
                added += 1
            if self.engine.idle:
                time.sleep(max(0.0, min(seconds, due[added][0] if added < len(due) else seconds) - now))
                now = time.perf_counter() - began
                continue
            before = all(waiting.waiting_of(tenant) for tenant in TENANTS)
            news = self.engine.step()
            now = time.perf_counter() - began
            for number, cost in enumerate(costs_of(news.batch) if news.batch is not None else ()):
                totals[number] += cost
            at.append(now)
            had.append((totals[0], totals[1]))
            both.append(before and all(waiting.waiting_of(tenant) for tenant in TENANTS))
            told = self._heard(news, now, open_, waits)
            tokens += told if now <= seconds else 0
        self.engine.scheduler.abort_client(b"")
        while not self.engine.idle:
            self.engine.step()
        waits += [now - asked for asked in open_.values()]
        return Served(
            np.array(at), np.array(had), np.array(both), tokens / seconds, np.array(waits), unfinished=len(open_)
        )

    def _heard(self, news: StepNews, now: float, open_: dict[str, float], waits: list[float]) -> int:
        count = 0
        for sequence, output in news.each():
            count += len(output.tokens)
            if output.finish_reason is not None and sequence.id in open_:
                waits.append(now - open_.pop(sequence.id))
        return count

    def _add(self, tenant: str) -> str:
        self._number += 1
        tokens = tuple(self._draw.integers(_LEAST_ID, self._vocabulary, PROMPT).tolist())
        sampling = SamplingParams(max_tokens=NEW, ignore_eos=True)
        root = self.engine.key(tenant, None)
        self.engine.add(str(self._number), tokens, sampling, root=root, now=time.monotonic())
        return str(self._number)


def costs_of(batch: Batch) -> tuple[float, float]:
    """What a step computes for each of `TENANTS`, told from its rows and not by the counters."""
    costs = [0.0, 0.0]
    for sequence in batch.table.sequences[batch.decodes[1]].tolist():
        if sequence is not None:
            costs[TENANTS.index(sequence.root.tenant)] += OUTPUT_COST
    for chunk in batch.chunks:
        tenant = TENANTS.index(chunk.sequence.root.tenant)
        costs[tenant] += INPUT_COST * chunk.count + OUTPUT_COST * chunk.samples
    return costs[0], costs[1]


@dataclass(slots=True)
class Figures:
    """All runs, by case, and what they come to."""

    rows: int
    capacity: float
    runs: dict[Case, list[Served]]

    def p99(self, case: Case) -> float:
        """The victim's, in seconds: the median over the repeats."""
        return statistics.median(float(np.percentile(run.waits, 99)) for run in self.runs[case])

    def rate(self, case: Case) -> float:
        return statistics.median(run.rate for run in self.runs[case])

    def json(self) -> dict[str, Any]:
        """Everything told, with the course of the last run of each case that the plot shows."""
        return {
            "rows": self.rows,
            "capacity_requests_per_second": self.capacity,
            "victim_p99_ratio": self.p99(TEN) / self.p99(SHARE),
            "throughput_ratio": self.rate(TEN) / self.rate(TEN_IN_ORDER),
            "bound": bound(self.rows),
            "widest_gap": max(run.gap for run in self.runs[BOTH]),
            "widest_gap_in_order": max(run.gap for run in self.runs[BOTH_IN_ORDER]),
            "cases": [
                {
                    "name": case.name,
                    "loads": case.loads,
                    "fair": case.fair,
                    "victim_p99_seconds": [float(np.percentile(run.waits, 99)) for run in runs],
                    "victim_p50_seconds": [float(np.percentile(run.waits, 50)) for run in runs],
                    "victim_unfinished": [run.unfinished for run in runs],
                    "tokens_per_second": [run.rate for run in runs],
                    "widest_gap": [run.gap for run in runs],
                }
                for case, runs in self.runs.items()
            ],
            "course": {
                name: {"seconds": run.at.tolist(), "service": run.had.tolist()}
                for name, run in (("fair", self.runs[BOTH][-1]), ("in_order", self.runs[BOTH_IN_ORDER][-1]))
            },
        }


def measure(rows: int = 16, seconds: float = 8.0, repeats: int = 3, seed: int = 0) -> Figures:
    """Runs all cases in turn, `repeats` times."""
    engine = make_engine(rows)
    try:
        drive = Drive(engine, seed)
        gc.collect()
        gc.freeze()  # as the worker does: a full collection over the model's objects would be the slowest step of all
        drive.capacity(2 * rows)
        capacity = drive.capacity(16 * rows)
        runs: dict[Case, list[Served]] = {case: [] for case in CASES}
        for _ in range(repeats):
            for case in CASES:
                runs[case].append(drive.run(case, capacity, seconds))
        engine.check_integrity()
        return Figures(rows, capacity, runs)
    finally:
        engine.close()


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench fairness", description=__doc__)
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch (16)")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long requests come, each case (8)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw service, difference and bound here (.png, .svg or .pdf)")
    options = parser.parse_args(arguments)
    if options.plot:
        check_plot(options.plot)
    torch.set_num_threads(1)
    figures = measure(options.rows, options.seconds, options.repeats)
    if not all(len(run.waits) for runs in figures.runs.values() for run in runs):
        parser.error(
            f"at {figures.capacity:.1f} requests/s, the victim asked for nothing in {options.seconds:g} s: "
            "give more --seconds"
        )
    console, found = wide_console(), figures.json()
    table = Table("", "victim p50, ms", "victim p99, ms", "tokens/s", "unfinished", "widest gap")
    for case in found["cases"]:
        p50, p99 = (statistics.median(case[f"victim_{cut}_seconds"]) * 1e3 for cut in ("p50", "p99"))
        table.add_row(
            case["name"], f"{p50:,.1f}", f"{p99:,.1f}", f"{statistics.median(case['tokens_per_second']):,.0f}",
            str(sum(case["victim_unfinished"])), f"{max(case['widest_gap']):,.0f}",
        )  # fmt: skip
    console.print(
        f"{options.repeats} repeats of {options.seconds:g} s, {options.rows} rows, prompts {PROMPT}, replies {NEW} "
        f"tokens, capacity {figures.capacity:.0f} requests/s; the victim asks for {SHARE.loads[0]:.0%} of it"
    )
    console.print(table)
    console.print(
        f"victim's p99 beside a tenfold neighbour: {found['victim_p99_ratio']:.2f} × that beside one at its share; "
        f"all tokens: {found['throughput_ratio']:.3f} × first come, first served; two that wait differed by at most "
        f"{found['widest_gap']:,.0f} of {found['bound']:,.0f} ({found['widest_gap_in_order']:,.0f} in order of coming)"
    )
    if options.json:
        write_json(options.json, found)
    if options.plot:
        from softmux.bench.services.fairness_plot import plot_fairness

        titles = {"virtual token counters": BOTH, "first come, first served": BOTH_IN_ORDER}
        courses = {title: (run.at, run.had) for title, case in titles.items() for run in figures.runs[case][-1:]}
        plot_fairness(options.plot, courses, TENANTS, bound(figures.rows))
    return 0
