"""docs/settings.md says what `Settings` says: every setting, its default, its description, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

from softmux.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_ROW = re.compile(r"^\| `SOFTMUX_([A-Z_]+)`.*$", re.MULTILINE)


def expected_row(name: str) -> str:
    field = Settings.model_fields[name]
    default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default or "")
    shown = f"`{default}`" if default else "none"
    return f"| `SOFTMUX_{name.upper()}` | {shown} | {field.description} |"


def test_every_setting_has_its_row_and_every_row_its_setting() -> None:
    rows = {match[1].lower(): match[0] for match in _ROW.finditer(PAGE.read_text(encoding="utf-8"))}
    assert rows == {name: expected_row(name) for name in Settings.model_fields}


def test_no_setting_is_listed_twice() -> None:
    names = _ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(names) == len(set(names))
