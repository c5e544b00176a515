"""`softmux bench mixed`, `tiers` and `all`: mixed tasks, and thousands of adapters, on the demo's base model."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from softmux.bench.device.tiers import run_tiers
from softmux.bench.loads.report import print_race, race_json, wide_console, write_json
from softmux.bench.peers.mixed import run_mixed
from softmux.bench.peers.peers import quiet_transformers
from softmux.bench.peers.service import run_service
from softmux.demo import demo_model


def main(arguments: Sequence[str]) -> int:
    """The first argument is what: `mixed`, `tiers`, or `all`, which is both and the service."""
    parser = argparse.ArgumentParser(prog="softmux bench", description=__doc__)
    parser.add_argument("what", choices=("mixed", "tiers", "all"))
    parser.add_argument("--model", help="base model; default: the demo's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--adapters", type=int, default=2000, help="tiers: registered adapters")
    parser.add_argument("--requests", type=int, default=400, help="tiers: requests, one at a time, Zipf")
    options = parser.parse_args(arguments)
    quiet_transformers()
    model = options.model or str(demo_model())
    console = wide_console()
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, {options.threads} threads, fp32, {model}", style="dim")
    found: dict[str, Any] = {}
    if options.what in ("mixed", "all"):
        found["mixed"] = _mixed(console, model, options)
    if options.what == "all":
        found["service"] = _service(console, model, options)
    if options.what in ("tiers", "all"):
        found["tiers"] = _tiers(console, model, options)
    if options.json:
        write_json(options.json, found)
    return 0


def _span(values: list[float]) -> str:
    return f"{min(values):.1f} – {max(values):.1f}"


def _mixed(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:

    figures = run_mixed(model, threads=options.threads, repeats=options.repeats)
    table = Table("", "new tokens/s, median", "min – max", "softmux, 16 tasks, is")
    for name, rates in figures.rates.items():
        ratio = figures.ratio("softmux, 16 tasks", name)
        table.add_row(name, f"{statistics.median(rates):.1f}", _span(rates), f"{ratio:.2f} ×")
    limit = figures.counts["arithmetic limit, tokens/s"]
    table.add_row("arithmetic limit (matrix products alone)", f"{limit:.1f}", "", "")
    console.print("64 requests of 8–32 tokens and 32 new ones, 16 tasks of four methods; contenders take turns")
    console.print(table)
    for name in ("softmux, 16 tasks, cold", "softmux, cold, arrival order"):
        run = figures.counts[name]
        console.print(
            f"{name}: KV of {run.prefixes_computed} prompts computed, of {run.prefixes_copied} copied in (trained "
            f"prefixes), for 16 adapters; {run.computed_tokens} tokens in {run.steps} steps"
        )
    return {"rates": figures.rates, "arithmetic_limit": limit}


def _service(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:

    plan, race = run_service(model, threads=options.threads, repeats=options.repeats)
    console.print(plan.words())
    print_race(console, race)
    return race_json(race, {"load": plan.words()})


def _tiers(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:

    figures = run_tiers(
        model,
        adapters=options.adapters,
        in_host=options.adapters // 10,
        in_pool=max(8, options.adapters // 40),
        requests=options.requests,
        threads=options.threads,
    )
    table = Table("adapter was", "requests", "time to first token, median ms", "added ms")
    for tier, times in figures.times.items():
        median = statistics.median(times) * 1e3
        table.add_row(tier, str(len(times)), f"{median:.2f}", f"{figures.added(tier) * 1e3:+.2f}")
    console.print(f"{options.adapters} adapters, host memory for {options.adapters // 10}, Zipf, one request at a time")
    console.print(table)
    console.print(f"{figures.errors} errors in {figures.requests} requests")
    return {"times": figures.times, "errors": figures.errors}
