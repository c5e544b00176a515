"""`softmux usage`."""

from __future__ import annotations

from typing import Annotated

import typer

from softmux.cli.output import as_json, table
from softmux.cli.remote import DEFAULT_URL, Json, Key, Remote, Url


def usage(
    first: Annotated[str | None, typer.Option("--from", help="First day, as 2026-11-24; default: 30 days.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last day; default: today (UTC).")] = None,
    task: Annotated[str | None, typer.Option(help="One task alone; (base) is the bare model.")] = None,
    tenant: Annotated[str | None, typer.Option(help="With an admin's key: another tenant, or * for all.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Write CSV.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Json = False,
) -> None:
    """Show what was used, by day and task."""
    asked = {"from": first, "to": last, "task": task, "tenant": tenant, "format": "csv" if csv else "json"}
    answer = Remote(url, key).call("GET", "/v1/usage", params={name: value for name, value in asked.items() if value})
    if csv:
        typer.echo(answer.text, nl=False)
        return
    report = answer.json()
    if json_:
        as_json(report)
        return
    counts = ("requests", "prompt_tokens", "completion_tokens", "cached_tokens", "virtual_tokens")
    rows = [
        (row["date"], row["tenant"], row["task"] or "(base)", *(f"{row[name]:,}" for name in counts),
         f"{row['gpu_seconds']:,.3f}")
        for row in report["data"]
    ]  # fmt: skip
    total = report["total"]
    rows.append(("total", "", "", *(f"{total[name]:,}" for name in counts), f"{total['gpu_seconds']:,.3f}"))
    table(("day", "tenant", "task", "requests", "prompt", "completion", "cached", "virtual", "GPU s"), rows)
