"""A user's own rows: a CSV file with a header line, a JSONL file of objects or a Parquet file; two columns are used."""

from __future__ import annotations

import csv
import io
import json
import math
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterator
from pathlib import Path

from softmux.archives import FetchFailed
from softmux.tuning.data.examples import BadData, Example, no_unicode

MAX_CELL = 1 << 24


def read(path: Path, prompt: str, answer: str) -> Iterator[Example]:
    """The rows of `path`, counted from 1 without the header. Raises `BadData` naming file, row and column."""
    for row, cells in cells_of(path):
        for column in (prompt, answer):
            if column not in cells:
                raise BadData(
                    f"there is no such column; there are: {', '.join(cells)}", file=path.name, row=row, column=column
                )
            if not isinstance(cells[column], str):
                raise BadData(_no_text(cells[column]), file=path.name, row=row, column=column)
            if problem := no_unicode(str(cells[column])):
                raise BadData(problem, file=path.name, row=row, column=column)
        yield Example(str(cells[prompt]), str(cells[answer]), path.name, row)


def cells_of(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    """Each row's number, and its cells by column. Raises `BadData`."""
    if not path.is_file():
        raise BadData("there is no such file", file=str(path))
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path)
        return
    text = _text(path.read_bytes(), path.name)
    yield from _jsonl(text, path.name) if path.suffix.lower() in {".jsonl", ".ndjson"} else _csv(text, path.name)


def hub_file(data_set: str, path: str) -> Path:
    """A file of a data set of the hub, as `huggingface_hub` keeps it. Raises `FetchFailed`."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(data_set, path, repo_type="dataset"))
    except Exception as error:
        raise FetchFailed(
            f"{path} of the data set {data_set} can't be had from the hub ({error}). Check both names, and that the "
            'hub can be reached; or fetch the file yourself and use source = "file".'
        ) from error


def _text(data: bytes, file: str) -> str:
    """UTF-8, a byte order mark allowed. Bytes that are none become surrogates, which are told by row and column."""
    if data.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        raise BadData("it is UTF-16; save it as UTF-8", file=file)
    return data.decode("utf-8-sig", errors="surrogateescape")


def _no_text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "the cell is missing (null or NaN); fill it or leave the row out"
    return f"the cell is no text but {type(cell).__name__}"


def _parquet(path: Path) -> Iterator[tuple[int, dict[str, object]]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise BadData("Parquet needs a package: pip install 'softmux[parquet]'", file=path.name) from error
    row = 0
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=1024):
            for cells in batch.to_pylist():
                row += 1
                yield row, cells
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise BadData(f"broken Parquet ({error})", file=path.name, row=row + 1) from error


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
    for row, line in enumerate(text.split("\n"), start=1):  # JSON's strings may hold other line ends
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except json.JSONDecodeError as error:
            raise BadData(f"broken JSON ({error.msg})", file=file, row=row) from error
        if not isinstance(cells, dict):
            raise BadData("an object is expected on each line", file=file, row=row)
        yield row, cells
