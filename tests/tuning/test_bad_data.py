"""Rows that can't be learned from: `softmux tune` names file, row and column, and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from softmux.cli import app
from softmux.tuning.public import Task, tune
from softmux.tuning.recipes.recipe import PromptTuning

CSV = "question,reply\n"
GOOD = f"{CSV}a film, yes\na book, no\n"
RECIPE = """task = "toy"
base = "no-such-base"
{labels}[data]
source = "file"
path = "{name}"
prompt = "question"
answer = "reply"
[method]
kind = "prompt_tuning"
virtual_tokens = 4
[train]
steps = 2
learning_rate = 0.01
"""
BAD: dict[str, tuple[str, bytes, str]] = {
    "an empty file": ("r.csv", b"", "r.csv: there are no rows"),
    "a header alone": ("r.csv", CSV.encode(), "r.csv: there are no rows"),
    "no line": ("r.jsonl", b"\n\n", "r.jsonl: there are no rows"),
    "an empty cell": ("r.csv", f"{GOOD} , no\n".encode(), "r.csv, row 3, column question: the cell is empty"),
    "one class": (
        "r.csv",
        f"{CSV}a, yes\nb, yes\n".encode(),
        "r.csv, column reply: every row's answer is ' yes'; two different ones are needed",
    ),
    "a missing column": (
        "r.csv",
        b"question,answer\na, yes\n",
        "r.csv, row 1, column reply: there is no such column; there are: question, answer",
    ),
    "an unseen label": (
        "r.csv",
        f"{GOOD}a shoe, maybe\n".encode(),
        "r.csv, row 3, column reply: the answer is ' maybe', and the recipe's labels are no, yes",
    ),
    "two labels of one text": (
        "r.csv",
        f"{GOOD}a film, no\n".encode(),
        "r.csv, row 3, column reply: this text's answer is ' no', but row 1 of r.csv has the same text",
    ),
    "a row of 1 MB": (
        "r.csv",
        f"{GOOD}{'x' * (1 << 20)}y, no\n".encode(),
        "r.csv, row 3, column question: the cell is larger than 1 MiB",
    ),
    "broken UTF-8": (
        "r.csv",
        GOOD.encode() + b'"two\nlines and \xff", no\n',
        "r.csv, row 3, column question: the byte 0xff in it is not UTF-8; save the file as UTF-8",
    ),
    "broken UTF-8 in a label": (
        "r.csv",
        GOOD.encode() + b"a shoe, n\xe9\n",
        "r.csv, row 3, column reply: the byte 0xe9 in it is not UTF-8",
    ),
    "half a character": (
        "r.jsonl",
        b'{"question": "a \\ud83d", "reply": " no"}\n',
        r"r.jsonl, row 1, column question: \ud83d in it is half of a surrogate pair",
    ),
    "NaN": (
        "r.jsonl",
        json.dumps({"question": "a", "reply": " no"}).encode() + b'\n{"question": NaN, "reply": " no"}\n',
        "r.jsonl, row 2, column question: the cell is missing (null or NaN)",
    ),
    "NaN, as pandas writes it": ("r.csv", f"{GOOD}a shoe,\n".encode(), "r.csv, row 3, column reply: the cell is empty"),
}


def attempt(folder: Path, name: str, data: bytes, labels: str = 'labels = [" yes", " no"]\n') -> tuple[int, str]:
    """`softmux tune`'s exit code and words (in one line), of a folder with these rows. It must leave it as it was."""
    task = folder / "task"
    task.mkdir()
    (task / name).write_bytes(data)
    (task / "recipe.toml").write_text(RECIPE.format(labels=labels, name=name))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    done = CliRunner().invoke(app, ["tune", str(task / "recipe.toml"), "--out", str(folder / "out")])
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    return done.exit_code, " ".join(done.output.split())


@pytest.mark.parametrize("what", BAD)
def test_bad_rows_are_named_and_nothing_is_written(what: str, tmp_path: Path) -> None:
    name, data, said = BAD[what]
    code, told = attempt(tmp_path, name, data)
    assert code == 1
    assert said in told
    assert "Traceback" not in told


def test_one_answer_is_refused_where_the_recipe_names_no_labels(tmp_path: Path) -> None:
    code, told = attempt(tmp_path, "r.csv", f"{CSV}a, yes\nb, yes\n".encode(), labels="")
    assert code == 1
    assert "r.csv, column reply: every row's answer is ' yes'" in told


def test_pairs_in_python_are_named_by_their_task(base: Any) -> None:
    from softmux.tuning.data.examples import BadData

    method = PromptTuning(kind="prompt_tuning", virtual_tokens=2)
    with pytest.raises(BadData, match=r"mine, row 2, column text: \\ud83d in it is half of a surrogate pair"):
        tune([Task("mine", [("a", " b"), ("a \ud83d", " c")], method)], base)
