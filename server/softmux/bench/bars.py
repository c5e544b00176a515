"""The README's plot, from figures that were measured and written down:

    python -m softmux.bench.bars docs/figures/throughput.json docs/images/throughput.svg

Each panel has a scale of its own. The file is text, the same for the same figures, and follows a reader's dark mode.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.sax.saxutils import escape

from pydantic import BaseModel, ConfigDict

_LEFT, _RIGHT, _ROW, _WIDTH = 320, 80, 30, 860

_STYLE = """<style>
text { font: 14px system-ui, sans-serif; fill: #1f2430; }
.title { font-weight: 600; font-size: 16px; }
.panel { fill: #5b6472; }
.ours { fill: #2f6fde; } .other { fill: #a9b3c4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9f0; } .panel { fill: #a3adbd; } .ours { fill: #6b9cf5; } .other { fill: #5c6676; }
}
</style>"""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Bar(_Strict):
    name: str
    value: float
    written: str
    """As the page that it is from has it."""
    ours: bool = False


class Panel(_Strict):
    title: str
    source: str
    bars: tuple[Bar, ...]


class Figures(_Strict):
    title: str
    panels: tuple[Panel, ...]


def svg(figures: Figures) -> str:
    parts, top = [f'<text class="title" x="12" y="28">{escape(figures.title)}</text>'], 62
    for panel in figures.panels:
        parts.append(f'<text class="panel" x="12" y="{top}">{escape(panel.title)}</text>')
        top += 14
        most = max(bar.value for bar in panel.bars)
        for bar in panel.bars:
            width = bar.value / most * (_WIDTH - _LEFT - _RIGHT)
            parts += [
                f'<text x="{_LEFT - 10}" y="{top + 19}" text-anchor="end">{escape(bar.name)}</text>',
                f'<rect class="{"ours" if bar.ours else "other"}" x="{_LEFT}" y="{top + 4}" width="{width:.1f}" '
                f'height="{_ROW - 8}" rx="2"/>',
                f'<text x="{_LEFT + width + 8:.1f}" y="{top + 19}">{escape(bar.written)}</text>',
            ]
            top += _ROW
        top += 34
    height = top - 30
    told = "; ".join(f"{bar.name}: {bar.written}" for panel in figures.panels for bar in panel.bars)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}"'
    words = f"<title>{escape(figures.title)}</title>\n<desc>{escape(told)}</desc>"
    return "\n".join([f'{head} role="img">', words, _STYLE, *parts, "</svg>", ""])


def main(source: str, target: str) -> None:
    figures = Figures.model_validate_json(Path(source).read_text(encoding="utf-8"))
    Path(target).write_text(svg(figures), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
