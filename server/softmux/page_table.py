"""A page's table that code writes: between two marks, brought up to date by a command that a test names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path


def written(page: str, table: str, begin: str, end: str) -> str:
    """`page` with `table` between its marks `begin` and `end`."""
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def write(pages: Sequence[str], written: Callable[[str], str], table: Callable[[], str]) -> None:
    """Brings the pages of these paths up to date; without any, prints the table."""
    for name in pages:
        page = Path(name)
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
    if not pages:
        sys.stdout.write(table() + "\n")
