"""The runbook of docs/operations.md, an alert's heading and what follows it, as dashboards show it."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

RUNBOOK = "softmux-runbook"
PAGE = Path(__file__).parents[3] / "docs" / "operations.md"
_ENTRY = re.compile(r"^### `(Softmux\w+)`\n+(.*?)(?=\n##|\Z)", re.MULTILINE | re.DOTALL)


@cache
def entries() -> dict[str, str]:
    """What is to be done, by alert, in the page's order. Raises `FileNotFoundError` outside of a checkout."""
    return {alert: said.strip() for alert, said in _ENTRY.findall(PAGE.read_text(encoding="utf-8"))}


def anchors() -> list[str]:
    """Each entry's anchor on the page."""
    return [alert.lower() for alert in entries()]
