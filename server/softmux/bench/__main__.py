"""`softmux bench [mixed|service|tiers|gpu]`: measures, prints a table, and writes JSON where asked."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("mixed", "service", "tiers", "gpu", "all"), default="mixed")
    parser.add_argument("--model", help="base model; default: the demo's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--adapters", type=int, default=2000, help="tiers: registered adapters")
    parser.add_argument("--requests", type=int, default=400, help="tiers: requests, one at a time, Zipf")
    options, rest = parser.parse_known_args(arguments)
    if options.what == "gpu":
        from softmux.bench import gpu

        gpu.main(rest)
        return 0
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    _quiet()
    model = options.model or _demo_model()
    console = Console()
    console.print(f"{platform.machine()}, {os.cpu_count()} CPUs, {options.threads} threads, fp32, {model}", style="dim")
    found: dict[str, Any] = {}
    if options.what in ("mixed", "all"):
        found["mixed"] = _mixed(console, model, options)
    if options.what in ("service", "all"):
        found["service"] = _service(console, model, options)
    if options.what in ("tiers", "all"):
        found["tiers"] = _tiers(console, model, options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


def _quiet() -> None:
    import warnings

    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")  # PEFT's notices on position ids, once a request


def _demo_model() -> str:
    from softmux.demo import demo_model

    return str(demo_model())


def _span(values: list[float]) -> str:
    return f"{min(values):.1f} – {max(values):.1f}"


def _mixed(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:
    from softmux.bench.mixed import run_mixed

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
    from softmux.bench.service import run_service

    figures = run_service(model, threads=options.threads, repeats=options.repeats)
    share = statistics.median(a / b for a, b in zip(figures.service, figures.engine, strict=True))
    table = Table("64 clients, 16 tasks", "new tokens/s, median", "min – max")
    table.add_row("HTTP service", f"{statistics.median(figures.service):.1f}", _span(figures.service))
    table.add_row("engine in-process", f"{statistics.median(figures.engine):.1f}", _span(figures.engine))
    console.print(table)
    console.print(f"the service reaches {share:.1%} of the engine")
    return {"service": figures.service, "engine": figures.engine, "latencies": figures.latencies}


def _tiers(console: Console, model: str, options: argparse.Namespace) -> dict[str, Any]:
    from softmux.bench.tiers import run_tiers

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


if __name__ == "__main__":
    sys.exit(main())
