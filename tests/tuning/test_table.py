from __future__ import annotations

from pathlib import Path

import pytest

from softmux.archives import FetchFailed
from softmux.tuning import sources
from softmux.tuning.data.examples import BadData, Example
from softmux.tuning.recipes.recipe import Data
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
        ("r.jsonl", b'{"prompt": "a", "answer": 7}\n', r"r\.jsonl, row 1, column answer: the cell is no text"),
        ("r.jsonl", b'{"prompt": "a", "answer": "b"}\n{"prompt"\n', r"r\.jsonl, row 2: broken JSON"),
        ("r.jsonl", b"[1]\n", r"r\.jsonl, row 1: an object is expected"),
        ("r.jsonl", '{"prompt": "a\u2028b", "answer": "b"}\n{"prompt": 1}'.encode(), r"r\.jsonl, row 2, column prompt"),
        ("r.csv", "prompt,answer\na,b\n".encode("utf-16"), r"r\.csv: it is UTF-16; save it as UTF-8"),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_column(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    with pytest.raises(BadData, match=said):
        read(tmp_path, name, data)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is no such file"):
        list(table.read(tmp_path / "none.csv", "prompt", "answer"))


def test_parquet_gives_the_same_rows_and_names_what_is_missing(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    def write(answers: list[object]) -> Path:
        columns = {"id": [1, 2], "prompt": ['a, "b"', "c\nd"], "answer": answers}
        write_table(pyarrow.table(columns), tmp_path / "r.parquet")
        return tmp_path / "r.parquet"

    rows = list(table.read(write([" x", " y"]), "prompt", "answer"))
    assert [(row.text, row.answer, row.row) for row in rows] == [('a, "b"', " x", 1), ("c\nd", " y", 2)]
    for answers in ([" x", None], [1.0, float("nan")]):
        with pytest.raises(BadData, match=r"r\.parquet, row [12], column answer: the cell is (missing|no text)"):
            list(table.read(write(answers), "prompt", "answer"))
    with pytest.raises(BadData, match=r"r\.parquet, row 1, column reply: there is no such column"):
        list(table.read(write([" x", " y"]), "prompt", "reply"))
    (tmp_path / "r.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadData, match=r"r\.parquet, row 1: broken Parquet"):
        list(table.read(tmp_path / "r.parquet", "prompt", "answer"))


def test_a_hub_file_is_taken_from_its_cache_and_one_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "datasets--softmux--rows"
    revision = "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "snapshots" / revision / "train.csv").write_text("prompt,answer\na, x\nb, y\n")
    data = Data(source="hub", hub="softmux/rows", path=Path("train.csv"))
    assert [row.answer for row in sources.load(data, tmp_path, labels=["x", "y"])] == [" x", " y"]
    with pytest.raises(FetchFailed, match=r"none\.csv of the data set softmux/rows can't be had from the hub"):
        sources.load(data.model_copy(update={"path": Path("none.csv")}), tmp_path)
