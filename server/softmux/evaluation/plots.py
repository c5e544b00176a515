"""The report's plots: inline SVG that takes its colours from the page, so that it is read in light, dark and print."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from softmux.evaluation.figures import Figure
from softmux.evaluation.report import Distance

_WIDTH, _LABELS, _RIGHT, _ROW, _AXIS = 720, 210, 136, 30, 26


def whiskers(rows: Sequence[tuple[str, Figure]], title: str, *, line: float | None = None, first: bool = False) -> str:
    """A point and its interval for each row, on an axis from 0 to 100 %. `line` is a figure to hold them against;
    `first`: the first row is what the others are compared with."""
    height = _ROW * len(rows) + _AXIS
    parts = [_begin(height, title)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = _x(share)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - _AXIS}"/>')
        parts.append(_text(at, height - 8, f"{100 * share:.0f} %", "tick", "middle"))
    if line is not None:
        at = _x(line)
        parts.append(f'<line class="all" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - _AXIS}"/>')
    for number, (name, figure) in enumerate(rows):
        middle = _ROW * number + _ROW / 2 + 2
        kind = "own" if first and not number else "other" if first else "own"
        low, high, at = _x(figure.low), _x(figure.high), _x(figure.value)
        parts.append(_text(_LABELS - 14, middle + 4, name, "name", "end"))
        parts.append(f'<line class="span {kind}" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>')
        parts.append(f'<circle class="dot {kind}" cx="{at:.1f}" cy="{middle}" r="5"/>')
        parts.append(_text(_WIDTH - _RIGHT + 16, middle + 4, f"{100 * figure.value:.1f} %", "value", "start"))
        parts.append(_text(_WIDTH - 4, middle + 4, f"n = {figure.rows}", "tick", "end"))
    return "".join([*parts, "</svg>"])


def far(distances: Sequence[Distance], title: str) -> str:
    """The figure by the tokens of text before the input, with its intervals."""
    top, bottom, left, right = 18, 190, 56, _WIDTH - 24
    parts = [_begin(bottom + 44, title)]

    def y(share: float) -> float:
        return bottom - (bottom - top) * share

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>')
        parts.append(_text(left - 8, y(share) + 4, f"{100 * share:.0f} %", "tick", "end"))
    step = (right - left) / max(1, len(distances))
    places = [left + step * (i + 0.5) for i in range(len(distances))]
    if len(places) > 1:
        points = " ".join(f"{x:.1f},{y(d.figure.value):.1f}" for x, d in zip(places, distances, strict=True))
        parts.append(f'<polyline class="path" points="{points}"/>')
    for x, distance in zip(places, distances, strict=True):
        figure = distance.figure
        parts.append(
            f'<line class="span own" x1="{x:.1f}" x2="{x:.1f}" y1="{y(figure.low):.1f}" y2="{y(figure.high):.1f}"/>'
        )
        parts.append(f'<circle class="dot own" cx="{x:.1f}" cy="{y(figure.value):.1f}" r="5"/>')
        parts.append(_text(x + 10, y(figure.value) - 8, f"{100 * figure.value:.1f} %", "value", "start"))
        parts.append(_text(x, bottom + 18, f"{distance.tokens:,}" if distance.tokens else "none", "name", "middle"))
        if distance.gain is not None:
            parts.append(_text(x, bottom + 36, f"+{distance.gain:.2f} nats", "tick", "middle"))
    return "".join([*parts, "</svg>"])


def _x(share: float) -> float:
    return _LABELS + (_WIDTH - _LABELS - _RIGHT) * share


def _begin(height: float, title: str) -> str:
    words = escape(title, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{words}"><title>{words}</title>'


def _text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
