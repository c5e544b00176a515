from __future__ import annotations

from pathlib import Path

import pytest

from softmux.tuning.data import BadData, Example
from softmux.tuning.sources import table


def read(tmp_path: Path, name: str, data: bytes) -> list[Example]:
    (tmp_path / name).write_bytes(data)
    return list(table.read(tmp_path / name, "prompt", "answer"))


def test_csv_and_jsonl_give_the_same_rows(tmp_path: Path) -> None:
    commas = '\ufeffid,prompt,answer\n1,"a, ""b""", x\n2,"c\nd", y\n'
    lines = '{"prompt": "a, \\"b\\"", "answer": " x"}\n\n{"prompt": "c\\nd", "answer": " y"}\n'
    by_comma = read(tmp_path, "r.csv", commas.encode())
    by_line = read(tmp_path, "r.jsonl", lines.encode())
    assert [(row.text, row.answer) for row in by_comma] == [('a, "b"', " x"), ("c\nd", " y")]
    assert [(row.text, row.answer) for row in by_line] == [(row.text, row.answer) for row in by_comma]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        (
            "r.csv",
            b"prompt,reply\na,b\n",
            r"r\.csv, row 1, column answer: there is no such column; there are: prompt",
        ),
        ("r.csv", b"prompt,answer\na,b\na\n", r"r\.csv, row 2, column answer"),
        ("r.csv", b"prompt,answer\na,b,c\n", r"r\.csv, row 1: it has more cells"),
        ("r.csv", b'prompt,answer\na,b\n"a" b,c\n', r"r\.csv, row 2: broken CSV"),
        ("r.csv", b"prompt,answer\na,b\n\xff,c\n", r"r\.csv, row 3: byte 18 is not UTF-8"),
        ("r.jsonl", b'{"prompt": "a", "answer": 7}\n', r"r\.jsonl, row 1, column answer: the cell is no text"),
        ("r.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt"\n', r"r\.jsonl, row 2: broken JSON"),
        ("r.jsonl", b"[1]\n", r"r\.jsonl, row 1: an object is expected"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_column(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(BadData, match=said):
        read(tmp_path, name, data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no such file"):
        list(table.read(tmp_path / "none.csv", "prompt", "answer"))
