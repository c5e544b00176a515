"""PromQL over the declared metrics: a name, a label or a bucket that is not declared is an error when it is written."""

from __future__ import annotations

from collections.abc import Sequence

from softmux.telemetry.metrics import BY_NAME, PREFIX, Metric

INSTANCE = 'instance=~"$instance"'
VARIABLES = ("task", "tenant")
"""Labels that a dashboard's variable of the same name chooses by."""


def rate(name: str, *by: str, where: str = "") -> str:
    """How fast a counter grows, by labels; histograms' counts are `rate("step_seconds_count")`."""
    return f"sum{_by(name, by)} (rate({_selected(name, where)}[$__rate_interval]))"


def grown(name: str, over: str, *by: str, where: str = "") -> str:
    """By how much a counter has grown within `over`."""
    return f"sum{_by(name, by)} (increase({_selected(name, where)}[{over}]))"


def now(name: str, *by: str, how: str = "sum", where: str = "") -> str:
    """A gauge of all instances."""
    return f"{how}{_by(name, by)} ({_selected(name, where)})"


def quantile(name: str, q: float) -> str:
    """Of a histogram's observations."""
    return f"histogram_quantile({q}, {rate(name + '_bucket', 'le')})"


def mean(name: str) -> str:
    """Of a histogram's observations."""
    return f"{rate(name + '_sum')} / {rate(name + '_count')}"


def share(part: str, whole: str) -> str:
    """0 where there is nothing: a panel with no answer looks like one with no server."""
    return f"({part}) / (({whole}) > 0) or 0 * ({whole})"


def part_of_all(name: str, label: str) -> str:
    """Each label's share of the whole; 0 where there is nothing."""
    each = rate(name, label)
    return f"({each}) / on () group_left () (({rate(name)}) > 0) or 0 * ({each})"


def part_of(part: str, whole: str) -> str:
    """The greatest share of a gauge that another is, among the servers."""
    return f"max ({_selected(part, '')} / ({_selected(whole, '')} > 0))"


def top(query: str, most: int) -> str:
    return f"topk({most}, {query})"


def declared(name: str) -> Metric:
    """The metric whose series has that name. Raises `KeyError` where none has."""
    if name not in BY_NAME:
        for suffix in ("_bucket", "_count", "_sum"):
            if name.endswith(suffix) and BY_NAME[name.removesuffix(suffix)].kind == "histogram":
                return BY_NAME[name.removesuffix(suffix)]
    return BY_NAME[name]


def _selected(name: str, where: str) -> str:
    metric = declared(name)
    chosen = [f'{label}=~"${label}"' for label in VARIABLES if label in metric.labels]
    return f"{PREFIX}{name}{{{','.join([INSTANCE, *chosen, *([where] if where else [])])}}}"


def _by(name: str, labels: Sequence[str]) -> str:
    known = {*declared(name).labels, "instance", "le"}
    if not known.issuperset(labels):
        raise KeyError(f"{name} has no labels {set(labels) - known}")
    return f" by ({', '.join(labels)})" if labels else ""
