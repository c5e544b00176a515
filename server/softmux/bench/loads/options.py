"""The options that both targets share: the load, and what is made of its figures. Words follow `vllm bench serve`."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from softmux.bench.loads.lengths import WORDS, parse_lengths
from softmux.bench.loads.load import Plan
from softmux.bench.loads.mixes import parse_mix
from softmux.bench.loads.plot import check_plot, plot_race
from softmux.bench.loads.race import Race
from softmux.bench.loads.report import print_race, race_json, write_json
from softmux.bench.loads.slo import METRICS, parse_slo
from softmux.bench.loads.summary import Summary
from softmux.bench.loads.trace import read_trace
from softmux.errors import InvalidRequest


def add_load_options(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("the load")
    load.add_argument("--num-prompts", type=_above_zero, default=256, metavar="N", help="requests a repeat (256)")
    load.add_argument(
        "--concurrency", "--max-concurrency", type=_above_zero, metavar="N", help="requests at a time: a closed loop"
    )
    load.add_argument(
        "--request-rate", type=float, default=math.inf, metavar="R", help="arrivals a second (inf: all at once)"
    )
    load.add_argument(
        "--burstiness", type=float, default=1.0, help="shape of the gaps' gamma distribution; 1 is a Poisson process"
    )
    load.add_argument(
        "--trace", type=Path, metavar="FILE", help="arrivals of a JSONL file instead (docs/performance.md)"
    )
    load.add_argument("--task-mix", default="uniform", help="uniform, or zipf:S")
    load.add_argument("--bare-share", type=float, default=0.0, metavar="P", help="share of requests for the bare model")
    load.add_argument("--input-len", default="uniform:128:384", metavar="LEN", help=f"prompts: {WORDS}")
    load.add_argument("--output-len", default="128", metavar="LEN", help="replies: as --input-len")
    load.add_argument("--num-warmups", type=int, default=64, metavar="N", help="requests before, counted nowhere (64)")
    load.add_argument("--repeats", type=_above_zero, default=3, help="each with new prompts; targets take turns (3)")
    load.add_argument("--seed", type=int, default=0)
    results = parser.add_argument_group("the results")
    results.add_argument(
        "--goodput", nargs="+", default=[], metavar="METRIC:MS", help=f"an objective: {', '.join(METRICS)}"
    )
    results.add_argument("--output-json", type=Path, metavar="FILE", help="all figures, in vLLM's names")
    results.add_argument("--save-detailed", action="store_true", help="with every request of the last repeat")
    results.add_argument("--plot", type=Path, metavar="FILE", help="a .png, .svg or .pdf picture")


def _above_zero(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def check_options(options: argparse.Namespace) -> None:
    """What can be known to be wrong before anything is started."""
    parse_slo(options.goodput)
    if options.plot is not None:
        check_plot(options.plot)
    if options.output_json is not None and not options.output_json.parent.is_dir():
        raise InvalidRequest(f"There is no folder {options.output_json.parent}.", param="output-json")
    if options.trace is not None and not math.isinf(options.request_rate):
        raise InvalidRequest("A trace has arrival times of its own: leave --request-rate away.", param="trace")


def plan_of(options: argparse.Namespace, tasks: tuple[str, ...], vocabulary: int) -> Plan:
    return Plan(
        tasks=tasks,
        vocabulary=vocabulary,
        requests=options.num_prompts,
        mix=parse_mix(options.task_mix, options.bare_share),
        input_len=parse_lengths(options.input_len),
        output_len=parse_lengths(options.output_len),
        request_rate=options.request_rate,
        burstiness=options.burstiness,
        concurrency=options.concurrency,
        trace=tuple(read_trace(options.trace)) if options.trace else (),
        warmups=options.num_warmups,
        seed=options.seed,
    )


def watcher(console: Console) -> Callable[[str, Summary], None]:
    """Says of each run, as it ends, what it made."""

    def watch(name: str, summary: Summary) -> None:
        failed = f", {summary.failed} failed" if summary.failed else ""
        console.print(
            f"{name}: {summary.completed} requests in {summary.duration:.2f} s, "
            f"{summary.output_throughput:,.1f} output tok/s{failed}",
            style="dim",
        )

    return watch


def publish(
    console: Console, race: Race, plan: Plan, options: argparse.Namespace, command: list[str], about: Mapping[str, Any]
) -> None:
    """Prints the race, and writes the files that were asked for."""
    print_race(console, race)
    if options.output_json is not None:
        heading = {"command": shlex.join(["softmux", "bench", *command]), "load": plan.words(), **about}
        write_json(options.output_json, race_json(race, heading, detailed=options.save_detailed))
        console.print(f"figures: {options.output_json}", style="dim")
    if options.plot is not None:
        plot_race(options.plot, race.last, plan.words())
        console.print(f"plot: {options.plot}", style="dim")


def parse_settings(text: str) -> dict[str, Any]:
    """Reads `NAME=VALUE[,NAME=VALUE…]`, settings of `softmux serve`; values as JSON where they are such."""
    found: dict[str, Any] = {}
    for pair in text.split(","):
        name, separator, value = pair.partition("=")
        if not separator:
            raise InvalidRequest(f"A setting is NAME=VALUE, not {pair!r}.")
        try:
            found[name.strip().replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            found[name.strip().replace("-", "_")] = value
    return found
