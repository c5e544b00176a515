"""`softmux bench mixed`, `tiers` and `all`: mixed tasks, and thousands of adapters, on the demo's base model."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from softmux.bench.benches import BENCHES
from softmux.bench.loads.report import print_race, race_json, wide_console, write_json
from softmux.demo import demo_model

_Part = Callable[[Console, str, argparse.Namespace], dict[str, Any]]


def mixed(arguments: Sequence[str]) -> int:
    return _run(_parser("mixed"), arguments, {"mixed": _mixed})


def tiers(arguments: Sequence[str]) -> int:
    return _run(_with_adapters(_parser("tiers")), arguments, {"tiers": _tiers})


def everything(arguments: Sequence[str]) -> int:
    """Both, and the service."""
    return _run(_with_adapters(_parser("all")), arguments, {"mixed": _mixed, "service": _service, "tiers": _tiers})


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"softmux bench {name}", description=BENCHES[name].about)
    parser.add_argument("--model", help="base model; default: the demo's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser


def _with_adapters(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--adapters", type=int, default=2000, help="tiers: registered adapters")
    parser.add_argument("--requests", type=int, default=400, help="tiers: requests, one at a time, Zipf")
    return parser


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str], parts: dict[str, _Part]) -> int:
    options = parser.parse_args(arguments)
    from softmux.bench.peers.peers import quiet_transformers

    quiet_transformers()
    model = options.model or str(demo_model())
    console = wide_console()
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, {options.threads} threads, fp32, {model}", style="dim")
    found = {name: part(console, model, options) for name, part in parts.items()}
    if options.json:
        write_json(options.json, found)
    return 0


def _span(values: list[float]) -> str:
    return f"{min(values):.1f} – {max(values):.1f}"


def _mixed(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:
    from softmux.bench.peers.mixed import run_mixed

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
    from softmux.bench.peers.service import run_service

    plan, race, _ = run_service(model, threads=options.threads, repeats=options.repeats)
    console.print(plan.words())
    print_race(console, race)
    return race_json(race, {"load": plan.words()})


def _tiers(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:
    from softmux.bench.device.tiers import run_tiers

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
