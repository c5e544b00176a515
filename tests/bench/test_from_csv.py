"""`softmux bench from-csv`: what a user has, one command, and the answer of the task it made."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pytest

from softmux.bench.__main__ import main
from softmux.bench.training.from_csv import written
from softmux.tuning.data.examples import Example
from softmux.tuning.recipes.recipe import read_recipe
from softmux.tuning.sources import SOURCES, Source
from support.tiny_llama import tiny_llama

ROWS = [Example(f"film {i} was {('dull', 'gripping')[i % 2]}", (" negative", " positive")[i % 2]) for i in range(120)]


@pytest.fixture(autouse=True)
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    had = SOURCES["movie-sentiment"]
    monkeypatch.setitem(SOURCES, "movie-sentiment", Source((), lambda: ROWS, had.classes, had.about))


@pytest.mark.parametrize(("asked", "made"), [(40, 40), (100, 100), (121, 120), (None, 120)])
def test_the_recipe_is_one_and_the_rows_are_of_the_whole_file(tmp_path: Path, asked: int | None, made: int) -> None:
    path = written(tmp_path, "a/base", argparse.Namespace(steps=7, batch_rows=3, rows=asked))
    recipe = read_recipe(path)
    assert (recipe.base, recipe.train.steps, recipe.train.batch_rows) == ("a/base", 7, 3)
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == made
    assert rows[0]["text"] == ROWS[0].text
    assert int(rows[-1]["text"].split()[1]) >= 117


@pytest.mark.nightly
def test_it_ends_with_the_answer_of_a_served_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama(tmp_path)
    assert main(["from-csv", "--model", str(tmp_path), "--steps", "4", "--batch-rows", "4", "--device", "cpu"]) == 0
    assert "from rows.csv to the answer" in capsys.readouterr().out
