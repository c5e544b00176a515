"""The rows of a task from Python, before it is asked what they are to teach."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from softmux.tuning.data.examples import BadData
from softmux.tuning.tasks.task import Pairs

_SHOWN = 80
"""How many characters of what is wrong are told."""


def numbered(pairs: Pairs, name: str, second: str) -> Iterator[tuple[int, str, Any]]:
    """Each row's number (from 1), its text, and what should come back, which is called `second` and may be anything.
    Raises `BadData` for a row that is no pair, and for a text that is no string."""
    for number, row in enumerate(pairs, start=1):
        text, back = _pair(row, name, number, second)
        if not isinstance(text, str):
            raise BadData(
                f"the text is {_shown(text)}, and a text is a string: give one, or leave the row out",
                file=name, row=number, column="text",
            )  # fmt: skip
        yield number, text, back


def _pair(row: Any, name: str, number: int, second: str) -> tuple[Any, Any]:
    try:
        if isinstance(row, str | bytes | dict | set):  # two characters, or two keys, are no pair
            raise TypeError
        text, back = row
    except (TypeError, ValueError) as error:
        raise BadData(
            f"{_shown(row)} is no pair (text, {second}): give each row as one", file=name, row=number
        ) from error
    return text, back


def _shown(value: object) -> str:
    said = repr(value)
    return said if len(said) <= _SHOWN else f"{said[:_SHOWN]}…"
