"""`softmux top`: what a server does, live."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softmux.cli.output import as_json, fail
from softmux.cli.remote import DEFAULT_URL, Key, Remote, Url

if TYPE_CHECKING:
    from rich.console import RenderableType

    from softmux.telemetry.view import Reading

_ROWS = 12


def top(
    interval: Annotated[float, typer.Option("--interval", "-n", min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look for one interval, then end.")] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    json_: Annotated[bool, typer.Option("--json", help="Write JSON, a line each interval.")] = False,
) -> None:
    """Watch a server: load, latency, batch mix, cache, tasks, tenants. Takes an admin's key; Ctrl-C ends it."""
    from softmux.telemetry.view import figures

    remote = Remote(url, key)
    old = _read(remote)
    if json_ or once:
        _lines(remote, old, interval, once=once, json_=json_)
        return
    from rich.live import Live

    from softmux.errors import SoftmuxError

    shown = figures(old, old)
    try:
        with Live(_screen(shown, url, None), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                try:
                    new = _read(remote)
                except SoftmuxError as error:  # it is restarted, perhaps
                    live.update(_screen(shown, url, error.message), refresh=True)
                    continue
                shown, old = figures(old, new), new
                live.update(_screen(shown, url, None), refresh=True)
    except KeyboardInterrupt:
        return


def _lines(remote: Remote, old: Reading, interval: float, *, once: bool, json_: bool) -> None:
    import json

    from rich.console import Console

    from softmux.telemetry.view import figures

    try:
        while True:
            time.sleep(interval)
            new = _read(remote)
            shown, old = figures(old, new), new
            if not json_:
                Console(width=None).print(_screen(shown, remote.client.base_url, None))
            elif once:
                as_json(shown)
            else:
                typer.echo(json.dumps(shown, ensure_ascii=False))
            if once:
                return
    except KeyboardInterrupt:
        return


def _read(remote: Remote) -> Reading:
    from softmux.telemetry.view import Reading

    text = remote.call("GET", "/metrics").text
    try:
        return Reading.parse(text, time.monotonic())
    except ValueError as error:
        fail(f"{remote.client.base_url}/metrics does not answer with metrics ({error}): is it a softmux server?")


def _screen(shown: dict[str, Any], url: str, trouble: str | None) -> RenderableType:
    from rich.columns import Columns
    from rich.console import Group
    from rich.text import Text

    server, requests = shown["server"], shown["requests"]
    head = Text.assemble(
        ("softmux ", "bold"), f"{server.get('version', '')}  {server.get('model', '')}  "
        f"{server.get('dtype', '')} {server.get('device', '')}  {url}  ",
        ("up", "green") if shown["up"] else ("the engine is away", "bold red"),
    )  # fmt: skip
    lines: list[RenderableType] = [head]
    if trouble is not None:
        lines.append(Text(trouble, "red"))
    tokens, batch, cache = shown["tokens"], shown["batch"], shown["cache"]
    in_use, slots = cache["lora_slots"]
    load = [
        ("requests/s", f"{requests['per_second']:,.1f}"),
        ("failed/s", f"{requests['failed_per_second']:,.1f}"),
        ("running", f"{requests['running']:,}"),
        ("waiting", f"{requests['waiting']:,}"),
        ("tokens/s", f"{tokens['generated_per_second']:,.0f}"),
        ("computed/s", f"{tokens['computed_per_second']:,.0f}"),
    ]
    steps = [
        ("steps/s", f"{batch['steps_per_second']:,.1f}"),
        ("step", _time(batch["step_seconds"])),
        ("rows a step", _number(batch["rows"])),
        ("adapters a step", _number(batch["adapters"])),
        *((method, f"{share:.0%}") for method, share in sorted(batch["mix"].items(), key=lambda pair: -pair[1])),
    ]
    held = [
        ("found in cache", _share(cache["hit_share"])),
        ("KV in use", _share(cache["kv_share"])),
        ("KV tokens", f"{cache['kv_tokens']:,}"),
        ("adapters in memory", f"{cache['adapters_in_memory']:,}"),
        ("LoRA slots", f"{in_use} of {slots}"),
    ]
    times = [
        (name.replace("_", " "), f"{_time(at['p50'])} · {_time(at['p95'])}") for name, at in shown["latency"].items()
    ]
    panels = (("load", load), ("latency, p50 · p95", times), ("batch", steps), ("cache", held))
    lines.append(Columns([_panel(title, pairs) for title, pairs in panels], expand=False))
    lines.append(Columns([_busiest("task", shown["tasks"]), _busiest("tenant", shown["tenants"])]))
    return Group(*lines)


def _panel(title: str, pairs: list[tuple[str, str]]) -> RenderableType:
    from rich.panel import Panel
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(justify="right")
    for pair in pairs:
        grid.add_row(*pair)
    return Panel(grid, title=title, title_align="left")


def _busiest(label: str, rows: list[dict[str, Any]]) -> RenderableType:
    from rich import box
    from rich.table import Table

    table = Table(label, box=box.SIMPLE_HEAD)
    table.add_column("requests/s", justify="right")
    table.add_column("tokens/s", justify="right")
    for row in rows[:_ROWS]:
        table.add_row(row[label] or "(base)", f"{row['requests_per_second']:,.1f}", f"{row['tokens_per_second']:,.0f}")
    if len(rows) > _ROWS:
        table.add_row(f"{len(rows) - _ROWS} more", "", "")
    return table


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds * 1000:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"
