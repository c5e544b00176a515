"""docs/adapters.md says of every PEFT type, task and kind of base what the code does with it."""

from __future__ import annotations

from pathlib import Path

from softmux.support_table import BEGIN, END, written

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"


def test_the_table_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(BEGIN) == page.count(END) == 1
    assert page == written(page), "run `python -m softmux.support_table docs/adapters.md`"
