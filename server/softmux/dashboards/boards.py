"""Every dashboard as the JSON that Grafana reads."""

from __future__ import annotations

import itertools
import json
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as parts

from softmux.dashboards.adapters import ADAPTERS
from softmux.dashboards.engine import ENGINE
from softmux.dashboards.panels import DATASOURCE, Board, note
from softmux.dashboards.runbook import RUNBOOK, entries
from softmux.dashboards.service import SERVICE
from softmux.dashboards.tenants import TENANTS
from softmux.telemetry.metrics import PREFIX

BOARDS = (SERVICE, TENANTS, ADAPTERS, ENGINE)
_TAG = "softmux"
_ALL = parts.VariableOption(text="All", value="$__all")


def files() -> dict[str, str]:
    """Their content, by name."""
    built = [*(_built(board) for board in BOARDS), _runbook()]
    for made in built:
        for link in made.links:
            link.placement = None  # in sight, not in a menu
    return {f"{made.uid}.json": json.dumps(made, cls=JSONEncoder, indent=2, sort_keys=True) + "\n" for made in built}


def _built(board: Board) -> Any:
    builder = _begun(board.uid, board.title, board.description)
    builder = builder.with_variable(_chosen("instance", f"{PREFIX}worker_up", "Servers"))
    for label, metric in board.variables:
        builder = builder.with_variable(_chosen(label, PREFIX + metric, label.capitalize() + "s"))
    numbers = itertools.count(1)
    for row in board.rows:
        builder = builder.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            builder = builder.with_panel(panel.build().id(next(numbers)))
    return builder.build()


def _begun(uid: str, title: str, description: str) -> Any:
    links = dashboard.DashboardLink("softmux").type(parts.DashboardLinkType.DASHBOARDS).tags([_TAG])
    source = dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus")
    source = source.current(parts.VariableOption(text="Prometheus", value="softmux-prometheus"))
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([_TAG])
        .link(links.as_dropdown(True).keep_time(True).include_vars(True))
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(parts.DashboardCursorSync.CROSSHAIR)
        .readonly()
        .with_variable(source)
    )


def _chosen(label: str, metric: str, shown: str) -> Any:
    return (
        dashboard.QueryVariable(label)
        .label(shown)
        .datasource(DATASOURCE)
        .query(f"label_values({metric}, {label})")
        .refresh(parts.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(parts.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(_ALL)
    )


def _runbook() -> Any:
    builder = _begun(RUNBOOK, "softmux: runbook", "What each alert means, and what to do first.")
    for number, (alert, said) in enumerate(entries().items(), start=1):
        builder = builder.with_panel(note(alert, said, number))
    return builder.build()
