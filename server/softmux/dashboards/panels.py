"""Panels as this project draws them: what it is, in what unit, what it means, and where its alert's runbook line is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, text, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as parts
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from grafana_foundation_sdk.models.text import TextMode

from softmux.dashboards.runbook import RUNBOOK, anchors

DATASOURCE = parts.DataSourceRef(type_val="prometheus", uid="${datasource}")
_COLOURS = ("green", "yellow", "red")
Unit = Literal["reqps", "percentunit", "s", "short", "bytes", "none", "cps", "dateTimeAsIso"]
"""Grafana's names."""


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and what its series are called: `{{label}}` stands for a label's value."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """`shows`: lines over time, one number, a heat map of a histogram's buckets, or a table of labels. `limits` are
    where yellow and red begin (or, falling, end); `alert` whose runbook line it links to. `wide`: of 24 columns."""

    title: str
    description: str
    queries: tuple[Query, ...]
    unit: Unit = "short"
    shows: Literal["lines", "areas", "number", "heat", "labels"] = "lines"
    limits: tuple[float, float] | None = None
    falling: bool = False
    alert: str | None = None
    wide: int = 8

    def build(self) -> Any:
        builder = _BUILDERS[self.shows](self)
        builder = builder.title(self.title).datasource(DATASOURCE).span(self.wide)
        builder = builder.height(4 if self.shows == "number" else 8)
        said = self.description
        if self.alert is not None:
            said += f" Alert: {self.alert}."
            builder = builder.links([_runbook_link(self.alert)])
        for number, query in enumerate(self.queries):
            builder = builder.with_target(self._target(number, query))
        return builder.description(said)

    def _target(self, number: int, query: Query) -> Any:
        target = prometheus.Dataquery().ref_id(chr(ord("A") + number)).expr(query.expr).legend_format(query.legend)
        target = target.datasource(DATASOURCE)
        if self.shows == "heat":
            return target.format(PromQueryFormat.HEATMAP).range()
        if self.shows == "labels":
            return target.format(PromQueryFormat.TABLE).instant()
        return target.instant() if self.shows == "number" else target.range()

    @property
    def thresholds(self) -> Any:
        colours = _COLOURS[::-1] if self.falling else _COLOURS
        steps = [parts.Threshold(value=None, color=colours[0])]
        steps += [parts.Threshold(value=at, color=to) for at, to in zip(self.limits or (), colours[1:], strict=False)]
        return dashboard.ThresholdsConfig().mode(parts.ThresholdsMode.ABSOLUTE).steps(steps)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard. `variables`: the labels that it chooses by beside the instance, each with a metric that has it."""

    uid: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[tuple[str, str], ...] = ()


def _lines(panel: Panel) -> Any:
    builder = timeseries.Panel().unit(panel.unit).min(0).line_width(1).fill_opacity(8).span_nulls(False)
    builder = builder.show_points(kinds.VisibilityMode.NEVER).tooltip(
        common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
    )
    builder = builder.legend(
        common.VizLegendOptions()
        .display_mode(kinds.LegendDisplayMode.TABLE)
        .placement(kinds.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    if panel.shows == "areas":
        builder = builder.fill_opacity(40).stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    if panel.limits is not None:
        style = common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED)
        builder = builder.thresholds(panel.thresholds).thresholds_style(style)
    return builder


def _number(panel: Panel) -> Any:
    builder = stat.Panel().unit(panel.unit).graph_mode(kinds.BigValueGraphMode.NONE)
    builder = builder.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).values(False))
    colour = kinds.BigValueColorMode.BACKGROUND if panel.limits is not None else kinds.BigValueColorMode.NONE
    return builder.color_mode(colour).thresholds(panel.thresholds)


def _heat(panel: Panel) -> Any:
    colours = heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Blues").steps(32)
    return heatmap.Panel().calculate(False).unit(panel.unit).color(colours)


def _labels(panel: Panel) -> Any:
    hidden = parts.DataTransformerConfig(
        id_val="organize", options={"excludeByName": {"Time": True, "Value": True, "__name__": True, "job": True}}
    )
    return table.Panel().with_transformation(hidden)


_BUILDERS = {"lines": _lines, "areas": _lines, "number": _number, "heat": _heat, "labels": _labels}


def _runbook_link(alert: str) -> Any:
    url = f"/d/{RUNBOOK}?viewPanel=panel-{anchors().index(alert.lower()) + 1}"
    return dashboard.DashboardLink(f"Runbook: {alert}").type(parts.DashboardLinkType.LINK).url(url)


def note(title: str, markdown: str, number: int, *, wide: int = 12, height: int = 8) -> Any:
    """A panel of text."""
    builder = text.Panel().title(title).content(markdown).mode(TextMode.MARKDOWN).span(wide).height(height)
    return builder.id(number)
