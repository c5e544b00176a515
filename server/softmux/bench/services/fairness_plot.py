"""Two tenants beyond their shares, as a picture: what each is served, the difference, and the counters' bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Course = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Seconds of each step, and the service of each tenant by then: `[steps]`, `[steps, tenants]`."""


def plot_fairness(path: Path, courses: Mapping[str, Course], tenants: Sequence[str], limit: float) -> None:
    """Draws a row of two panels for each course, by its title. `limit`: 2 U."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5 * len(courses)), layout="constrained")
    panels = figure.subplots(len(courses), 2, sharex=True)
    for (left, right), (title, (at, had)) in zip(panels, courses.items(), strict=True):
        for number, tenant in enumerate(tenants):
            left.plot(at, had[:, number], label=tenant)
        left.set(title=title, ylabel="service, in token costs")
        right.plot(at, np.abs(had[:, 0] - had[:, 1]), label="difference")
        right.axhline(limit, color="black", linestyle="--", label="2 U, while both wait")
        right.set(title=title, ylabel="difference", yscale="symlog")
        for panel in (left, right):
            panel.legend(fontsize=8)
            panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set(xlabel="seconds")
    figure.savefig(path, dpi=120)
