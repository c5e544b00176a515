"""Scores of rows as a figure with its 95 % interval, and what changes between two of them.

A share of rows has Wilson's interval (1927); whatever else is made of scores is drawn again from its rows (the
percentile bootstrap of Efron 1979, 2,000 draws, seeded). Rows are drawn, not words: words of one row are not
independent. Between two ways of asking the same rows, each draw takes the same rows of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from softmux.evaluation.scores import Score

Z = 1.959964
"""Of 95 %."""
DRAWS = 2000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Figure:
    """From 0 to 1, with the interval that holds it in 95 of 100 cases."""

    value: float
    low: float
    high: float
    rows: int
    interval: Literal["wilson", "bootstrap"]


@dataclass(frozen=True, slots=True)
class Drop:
    """By how much a figure falls; negative where it rises."""

    value: float
    low: float
    high: float


def figure(scores: Sequence[Score]) -> Figure:
    """Of at least one row."""
    of, out_of = _columns(scores)
    value = _ratio(of.sum(), out_of.sum())
    if bool(np.isin(of, (0, 1)).all() and (out_of == 1).all()):
        low, high = wilson(int(of.sum()), len(of))
        return Figure(value, low, high, len(of), "wilson")
    drawn = _draw(of, out_of, _picks(len(of)))
    low, high = (float(x) for x in np.quantile(drawn, (0.025, 0.975)))
    return Figure(value, low, high, len(of), "bootstrap")


def drop(before: Sequence[Score], after: Sequence[Score], *, paired: bool = True) -> Drop:
    """From `before` to `after`; `paired`: of the same rows, in the same order."""
    one, two = _columns(before), _columns(after)
    picks = _picks(len(before))
    others = picks if paired else _picks(len(after), seed=1)
    value = _ratio(one[0].sum(), one[1].sum()) - _ratio(two[0].sum(), two[1].sum())
    drawn = _draw(*one, picks) - _draw(*two, others)
    low, high = (float(x) for x in np.quantile(drawn, (0.025, 0.975)))
    return Drop(value, low, high)


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The score interval of a share."""
    share, z2 = hits / count, Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return middle - half if hits else 0.0, middle + half if hits < count else 1.0


def _columns(scores: Sequence[Score]) -> tuple[Floats, Floats]:
    return np.array([score.of for score in scores]), np.array([score.out_of for score in scores])


def _picks(rows: int, seed: int = 0) -> NDArray[np.int64]:
    """`[DRAWS, rows]`, with replacement."""
    return np.random.default_rng(seed).integers(0, rows, (DRAWS, rows))


def _draw(of: Floats, out_of: Floats, picks: NDArray[np.int64]) -> Floats:
    whole = out_of[picks].sum(1)
    drawn: Floats = np.divide(of[picks].sum(1), whole, out=np.zeros(len(picks)), where=whole > 0)
    return drawn


def _ratio(of: float, out_of: float) -> float:
    return float(of / out_of) if out_of else 0.0
