"""A user's own rows: a CSV file with a header line, or a JSONL file of objects; two of the columns are used."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

from softmux.tuning.data import BadData, Example, decode

MAX_CELL = 1 << 24


def read(path: Path, prompt: str, answer: str) -> Iterator[Example]:
    """The rows of `path`, counted from 1 without the header. Raises `BadData` naming file, row and column."""
    if not path.is_file():
        raise BadData("there is no such file", file=str(path))
    text = decode(path.read_bytes(), path.name)
    rows = _jsonl(text, path.name) if path.suffix.lower() in {".jsonl", ".ndjson"} else _csv(text, path.name)
    for row, cells in rows:
        for column in (prompt, answer):
            if column not in cells:
                raise BadData(
                    f"there is no such column; there are: {', '.join(cells)}", file=path.name, row=row, column=column
                )
            if not isinstance(cells[column], str):
                raise BadData("the cell is no text", file=path.name, row=row, column=column)
        yield Example(str(cells[prompt]), str(cells[answer]), path.name, row)


def _csv(text: str, file: str) -> Iterator[tuple[int, dict[str, object]]]:
    csv.field_size_limit(MAX_CELL)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    row = 0
    try:
        for row, cells in enumerate(reader, start=1):
            if "" in cells:
                raise BadData("it has more cells than the header has columns", file=file, row=row)
            yield row, {name: value for name, value in cells.items() if value is not None}
    except csv.Error as error:
        raise BadData(f"broken CSV ({error})", file=file, row=row + 1) from error


def _jsonl(text: str, file: str) -> Iterator[tuple[int, dict[str, object]]]:
    for row, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadData(f"broken JSON ({error.msg})", file=file, row=row) from error
        if not isinstance(cells, dict):
            raise BadData("an object is expected on each line", file=file, row=row)
        yield row, cells
