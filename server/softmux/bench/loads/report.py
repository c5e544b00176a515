"""What a race showed, for people and for programs."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from softmux import __version__
from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.race import Race, spread
from softmux.bench.loads.summary import PERCENTILES, Summary

_BUSY = 0.85
_NAMES = {
    "ttft": "first token",
    "itl": "inter-token",
    "tpot": "per output token",
    "e2el": "end to end",
    "lag": "sent late",
}


def wide_console() -> Console:
    """On the terminal as it is; 120 columns where the output goes to a file or a pipe."""
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=120, markup=False)


def print_race(console: Console, race: Race) -> None:
    """A table of rates and one of latencies for each contender, the ratios, and what casts doubt on them."""
    rates = Table("", "output tok/s", "min – max", "requests/s", "goodput/s", "tokens/event", "failed")
    for name, summaries in race.summaries.items():
        output, low, high = spread([summary.output_throughput for summary in summaries])
        requests, _, _ = spread([summary.request_throughput for summary in summaries])
        failed = sum(summary.failed for summary in summaries)
        rates.add_row(
            name,
            f"{output:,.1f}",
            f"{low:,.1f} – {high:,.1f}",
            f"{requests:,.2f}",
            _median(summary.request_goodput for summary in summaries),
            _median(summary.tokens_per_event for summary in summaries),
            str(failed) if failed else "–",
        )
    console.print(rates)
    latencies = Table("median of the repeats, ms", "", "mean", *(f"p{cut}" for cut in PERCENTILES))
    for name, summaries in race.summaries.items():
        for number, metric in enumerate(_metrics(summaries)):
            found = [summary.latencies[metric] for summary in summaries if metric in summary.latencies]
            cells = [spread([values.mean for values in found])[0]]
            cells += [spread([values.percentiles[cut] for values in found])[0] for cut in PERCENTILES]
            latencies.add_row("" if number else name, _NAMES[metric], *(f"{cell:,.2f}" for cell in cells))
    console.print(latencies)
    first = next(iter(race.summaries))
    for name, ratios in race.ratios().items():
        if ratios:
            median, low, high = spread(ratios)
            console.print(f"{name} makes {median:.1%} of {first} ({low:.1%} – {high:.1%} over {len(ratios)} rounds)")
    for name, summaries in race.summaries.items():
        _print_doubts(console, name, summaries)


def _metrics(summaries: Sequence[Summary]) -> list[str]:
    return [metric for metric in _NAMES if any(metric in summary.latencies for summary in summaries)]


def _median(values: Any) -> str:
    known = [value for value in values if value is not None]
    return f"{spread(known)[0]:,.2f}" if known else "–"


def _print_doubts(console: Console, name: str, summaries: Sequence[Summary]) -> None:
    errors: dict[str, int] = {}
    for summary in summaries:
        for code, count in summary.errors.items():
            errors[code] = errors.get(code, 0) + count
    for code, count in sorted(errors.items(), key=lambda item: -item[1]):
        console.print(f"{name}: {count} × {code}", style="red")
    busy = max((summary.client_busy or 0.0 for summary in summaries), default=0.0)
    if busy > _BUSY:
        console.print(
            f"{name}: the client was {busy:.0%} busy and may have been what limits; give it more --client-processes",
            style="yellow",
        )


def race_json(race: Race, about: Mapping[str, Any], *, detailed: bool = False) -> dict[str, Any]:
    """`about` (the command, the load), the machine, and by contender every repeat's figures in vLLM's names;
    `detailed` adds the last repeat's requests one by one."""
    targets: dict[str, Any] = {}
    for name, summaries in race.summaries.items():
        output, low, high = spread([summary.output_throughput for summary in summaries])
        targets[name] = {
            "output_throughput": {"median": output, "min": low, "max": high},
            "repeats": [summary.flat() for summary in summaries],
        }
        if detailed:
            targets[name]["requests"] = [_request_json(outcome) for outcome in race.last[name]]
    return {
        "softmux": __version__,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        **about,
        "targets": targets,
        "ratios_of_output_throughput": {name: list(ratios) for name, ratios in race.ratios().items()},
    }


def _request_json(outcome: Outcome) -> dict[str, Any]:
    return {
        "due": outcome.due,
        "sent": outcome.sent,
        "ended": outcome.ended,
        "ttft": outcome.ttft,
        "events": list(outcome.events),
        "prompt_tokens": outcome.prompt_tokens,
        "output_tokens": outcome.tokens,
        "error": outcome.error,
    }


def write_json(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
