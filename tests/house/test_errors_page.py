"""docs/errors.md has every error as the code has it."""

from __future__ import annotations

from pathlib import Path

from softmux.client.errors import NoAnswer
from softmux.errors import SoftmuxError, from_code
from softmux.errors_page import BEGIN, END, answered, written

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")


def test_the_table_is_up_to_date() -> None:
    assert PAGE.count(BEGIN) == PAGE.count(END) == 1
    assert written(PAGE) == PAGE, "run `python -m softmux.errors_page docs/errors.md`"


def test_every_code_stands_there_once_with_the_class_that_the_client_raises() -> None:
    for cls in answered():
        assert PAGE.count(f"| {cls.status} | `{cls.code}` | `{cls.__name__}` |") == 1
        assert type(from_code(cls.code, "")) is cls
    for own in NoAnswer.__subclasses__():
        assert issubclass(own, SoftmuxError)
        assert f"| `{own.__name__}` |" in PAGE
