"""The report as one HTML file: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from softmux.evaluation.figures import DRAWS
from softmux.evaluation.plots import far, whiskers
from softmux.evaluation.report import Evaluation, Way
from softmux.evaluation.verdict import RULES, percent, points

_TEMPLATE = Path(__file__).with_name("page.html")


def page(found: Evaluation) -> str:
    """The whole document. Everything of the data is escaped."""
    return _template().render(
        one=found,
        compared=_plot(found.compared, f"{found.metric}, the same rows by other means", first=True),
        by_label=_plot(found.compared_labels, "The likeliest answer is right, the same rows", first=True),
        lengths=_plot((*found.lengths, *found.beyond), "By the input's length", line=found.overall.value),
        changed=_plot(found.changes, "Changed inputs", line=found.overall.value),
        distances=Markup(far(found.distances, "By the irrelevant text before the input")),  # noqa: S704
    )


@lru_cache(1)
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "points": points, "visible": _visible, "code": _code}
    environment.globals |= {"rules": RULES, "draws": DRAWS}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _plot(ways: tuple[Way, ...], title: str, *, line: float | None = None, first: bool = False) -> Markup:
    if not ways:
        return Markup()
    return Markup(whiskers([(way.name, way.figure) for way in ways], title, line=line, first=first))  # noqa: S704


def _visible(text: str) -> str:
    """With spaces at its ends and line ends shown: they are a part of answers."""
    inner = text.strip(" ")
    before, after = len(text) - len(text.lstrip(" ")), len(text) - len(text.rstrip(" "))
    if not inner:
        return "·" * len(text) or "(nothing)"
    shown = ("·" * before + inner + "·" * after).replace("\n", "↵ ")
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in shown)


def _code(text: str) -> Markup:
    """Words between backquotes as code."""
    parts = text.split("`")
    return Markup().join(
        Markup("<code>{}</code>").format(_visible(part)) if at % 2 else part for at, part in enumerate(parts)
    )
