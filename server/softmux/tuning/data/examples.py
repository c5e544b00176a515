"""Rows of a task: what a user would send, and what should come back."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from softmux.errors import InvalidRequest

MAX_TEXT_BYTES = 1 << 20
_BROKEN = re.compile(r"[\ud800-\udfff]")


class BadData(InvalidRequest):
    """A row that can't be learned from. The message names the file, the row (from 1) and the column."""

    def __init__(self, reason: str, *, file: str, row: int | None = None, column: str | None = None) -> None:
        place = file if row is None else f"{file}, row {row}"
        super().__init__(f"{place if column is None else f'{place}, column {column}'}: {reason}.", param="data")


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text, and what they are."""

    start: int
    end: int
    label: str


@dataclass(frozen=True, slots=True)
class Example:
    """`text` is the prompt as a user sends it, or the value of the template's slot; `answer` is the text to generate,
    its leading space included, or, without it, a sequence's label. `spans` are the labelled words of a task that
    labels tokens. `file` and `row` (from 1) say where it came from."""

    text: str
    answer: str
    file: str = ""
    row: int = 0
    spans: tuple[Span, ...] = ()


def decode(data: bytes, file: str) -> str:
    """UTF-8, a byte order mark allowed. Raises `BadData` naming the row of the first broken byte."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise BadData(f"byte {error.start} is not UTF-8; save the file as UTF-8", file=file, row=row) from error


def no_unicode(cell: str) -> str | None:
    """What is wrong with a cell that holds half of a surrogate pair, or a byte that was read as one; or None."""
    broken = _BROKEN.search(cell)
    if broken is None:
        return None
    code = ord(broken[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"the byte 0x{code - 0xDC00:02x} in it is not UTF-8; save the file as UTF-8"
    return f"\\u{code:04x} in it is half of a surrogate pair, which is no character; write it whole"


def known(examples: Iterable[Example], labels: Collection[str], column: str) -> Iterator[Example]:
    """The rows, each of whose answers must be one of `labels`, but for spaces around it. Raises `BadData`."""
    words = {label.strip() for label in labels}
    for example in examples:
        if example.answer.strip() not in words and example.answer.strip():
            raise BadData(
                f"the answer is {example.answer[:80]!r}, and the recipe's labels are {', '.join(sorted(words))}",
                file=example.file,
                row=example.row,
                column=column,
            )
        yield example


def checked(
    examples: Iterable[Example], *, classes: bool, file: str = "the data", columns: tuple[str, str] = ("text", "answer")
) -> list[Example]:
    """The rows, equal ones once. Raises `BadData` for an empty or huge cell, one that is no Unicode, no rows at all,
    and, where the answers are `classes`, for a text with two answers, or labelled in two ways. `columns` are
    the two cells' names."""
    seen: dict[str, Example] = {}
    for example in examples:
        for column, cell in zip(columns, (example.text, example.answer), strict=True):
            if not cell.strip():
                raise BadData("the cell is empty", file=example.file, row=example.row, column=column)
            if problem := no_unicode(cell):
                raise BadData(problem, file=example.file, row=example.row, column=column)
            if len(cell.encode()) > MAX_TEXT_BYTES:
                raise BadData("the cell is larger than 1 MiB", file=example.file, row=example.row, column=column)
        first = seen.setdefault(example.text, example)
        if classes and first.answer != example.answer:
            raise BadData(
                f"this text's answer is {example.answer!r}, but row {first.row} of {first.file} has the same text with "
                f"{first.answer!r}; keep one",
                file=example.file,
                row=example.row,
                column=columns[1],
            )
        if classes and first.spans != example.spans:
            raise BadData(
                f"row {first.row} of {first.file} has the same text with other labelled words; give all words of a "
                "text in one row",
                file=example.file,
                row=example.row,
                column=columns[1],
            )
    if not seen:
        raise BadData("there are no rows", file=file)
    return list(seen.values())


def several(examples: list[Example], column: str) -> list[Example]:
    """The rows, which must not all have one answer: nothing could be learned of them. Raises `BadData`."""
    answers = {example.answer or example.spans for example in examples}
    if len(answers) < 2:
        raise BadData(
            f"every row's answer is {examples[0].answer!r}; two different ones are needed at least",
            file=examples[0].file,
            column=column,
        )
    return examples
