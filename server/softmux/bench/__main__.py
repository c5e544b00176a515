"""`softmux bench [WHAT]`: measures, prints a table, and writes JSON where asked.

serve      a load over HTTP, on a server that runs            } closed-loop, Poisson or traced arrivals, task mixes,
offline    the same load on the engine in this process        } percentiles, goodput, A/B: `softmux bench serve --help`
client     what the load's own client can send and read
mixed      mixed tasks beside the ways of serving them without softmux (what is run when nothing is said)
methods    adapters of several methods and the bare model on the same held-out rows: new tokens a second
structured random JSON schemas beside free rows: how many documents are valid, what the free rows lose
seq2seq    the same on an encoder-decoder, against PEFT's loop
service    the HTTP service beside its engine
tiers      what an adapter costs that is not resident
gpu        a GPU's steps over the bytes they must move
prefill    prompts taken in: the share of the device's own matmul rate that its products reach
cartridges what trained keys and values of thousands of tokens save of the time to first token
residency  throughput and latency as tasks outgrow the GPU's and the host's room
swap       what a step's copies to the GPU and back cost
host       what the host does for a step, with a model that takes no time
fairness   what a neighbour beyond its share costs a tenant, and how far two tenants' service comes apart
faults     a server asked too much, left by its clients, ended and broken: goodput, refusals, streams cut off
tuning     many tasks trained at once beside one by one: tasks an hour, memory, exactness
from-csv   the time from a user's CSV to a served answer: tuned, measured, published, asked
migrate    what the shipped tasks keep when their base changes and its successor is taught by it
peft-training  held-out figures of a recipe by seed, as softmux trains it and as PEFT with the Hugging Face trainer does
endurance  a service over many tasks while versions come and go: memory, every reply held against its digest
cluster    replicas behind Ray Serve: adapters found in memory, replicas killed and joining; and 100 GPUs simulated
all        mixed, service and tiers
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from softmux.bench.command import command

_OWN_OPTIONS = {
    "serve": "softmux.bench.serve",
    "service": "softmux.bench.service",
    "offline": "softmux.bench.inprocess",
    "client": "softmux.bench.ceiling",
    "gpu": "softmux.bench.gpu",
    "prefill": "softmux.bench.prefill",
    "cartridges": "softmux.bench.cartridges",
    "residency": "softmux.bench.residency",
    "swap": "softmux.bench.swap",
    "host": "softmux.bench.host",
    "fairness": "softmux.bench.fairness",
    "endurance": "softmux.bench.endurance",
    "faults": "softmux.bench.faults",
    "seq2seq": "softmux.bench.seq2seq",
    "structured": "softmux.bench.structured",
    "methods": "softmux.bench.methods",
    "cluster": "softmux.bench.cluster",
    "tuning": "softmux.bench.tuning",
    "from-csv": "softmux.bench.from_csv",
    "migrate": "softmux.bench.migrate",
    "peft-training": "softmux.bench.peft_training",
}


def main(arguments: Sequence[str] | None = None) -> int:
    return command(_run, arguments)


def _run(words: Sequence[str]) -> int | None:
    if words and words[0] in _OWN_OPTIONS:
        status: int | None = import_module(_OWN_OPTIONS[words[0]]).main(words[1:])
        return status
    return _on_demo_model(words)


def _on_demo_model(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="softmux bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", nargs="?", choices=(*_OWN_OPTIONS, "mixed", "tiers", "all"), default="mixed", metavar="WHAT"
    )
    parser.add_argument("--model", help="base model; default: the demo's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--adapters", type=int, default=2000, help="tiers: registered adapters")
    parser.add_argument("--requests", type=int, default=400, help="tiers: requests, one at a time, Zipf")
    options = parser.parse_args(words)
    from softmux.bench.peers import quiet_transformers
    from softmux.bench.report import wide_console

    quiet_transformers()
    model = options.model or _demo_model()
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
        from softmux.bench.report import write_json

        write_json(options.json, found)
    return 0


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
    from softmux.bench.report import print_race, race_json
    from softmux.bench.service import run_service

    plan, race = run_service(model, threads=options.threads, repeats=options.repeats)
    console.print(plan.words())
    print_race(console, race)
    return race_json(race, {"load": plan.words()})


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
