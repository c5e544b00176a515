"""A race as a picture: how latencies are distributed, and how the output flowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from softmux.bench.loads.outcome import Outcome
from softmux.bench.loads.summary import metrics
from softmux.errors import InvalidRequest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = {"ttft": "time to first token, ms", "itl": "inter-token latency, ms", "e2el": "end-to-end latency, ms"}


def check_plot(path: Path) -> None:
    """Raises `InvalidRequest` where no plot can be made there: better before the run than after it."""
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InvalidRequest(f"A plot is a .png, .svg or .pdf file, not {path.name!r}.", param="plot")
    if not path.parent.is_dir():
        raise InvalidRequest(f"There is no folder {path.parent}.", param="plot")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            "A plot needs matplotlib, which is not installed: pip install 'softmux[bench]' brings it.", param="plot"
        ) from error


def plot_race(path: Path, outcomes: Mapping[str, Sequence[Outcome]], title: str) -> None:
    """Draws each contender's last repeat: three cumulative distributions, and output tokens a second over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    figure.suptitle(title, fontsize=9, wrap=True)
    for name, requests in outcomes.items():
        well = [outcome for outcome in requests if outcome.error is None]
        values = metrics(well)
        for panel, metric in zip(panels, _PANELS, strict=False):
            _cumulative(panel, np.sort(values[metric]) * 1e3, name)
        _flow(panels[3], well, name)
    for panel, words in zip(panels, _PANELS.values(), strict=False):
        panel.set(xlabel=words, ylabel="share of all", ylim=(0, 1))
    panels[3].set(xlabel="seconds", ylabel="output tokens a second", ylim=(0, None))
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[2].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _cumulative(panel: Axes, values: np.ndarray[tuple[int, ...], np.dtype[np.float64]], name: str) -> None:
    if values.size:
        panel.step(values, np.arange(1, values.size + 1) / values.size, where="post", label=name)
    else:
        panel.text(0.5, 0.5, "replies came whole", ha="center", transform=panel.transAxes, alpha=0.5)


def _flow(panel: Axes, outcomes: Sequence[Outcome], name: str) -> None:
    """A reply's tokens are spread over its events; one that came whole counts at its end."""
    times, weights = [], []
    for outcome in outcomes:
        events = list(outcome.events) or [outcome.ended]
        times += events
        weights += [outcome.tokens / len(events)] * len(events)
    if times:
        bins = min(60, max(5, len(times) // 20))
        counts, edges = np.histogram(times, bins=bins, weights=weights)
        panel.stairs(counts / np.diff(edges), edges, label=name)
