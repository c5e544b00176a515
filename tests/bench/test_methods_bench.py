"""`softmux bench methods`: folders of several methods and the bare model, on the same rows in turn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from softmux.bench.__main__ import main
from softmux.bench.loads.workload import Job
from softmux.bench.peers.methods import Measured, compare, held_out
from softmux.bench.peers.offline import Run
from softmux.errors import InvalidRequest
from support.loras import make_lora

SHORT = ["--rows", "3", "--new-tokens", "4", "--rounds", "2", "--device", "cpu", "--dtype", "float32", "--threads", "1"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("the film\n\na film that was far too long\nit is\nnever asked\n")
    return path


def test_each_is_measured_on_the_same_rows_in_the_same_engine(
    base: tuple[Any, Path], adapters: dict[str, Path], texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_lora(base[0], tmp_path / "lora")
    folders = [str(adapters[name]) for name in ("prompt-tuning", "prefix-tuning")] + [str(tmp_path / "lora")]
    where = ["--model", str(base[1]), "--texts", str(texts), "--json", str(tmp_path / "figures.json")]
    assert main(["methods", *folders, *where, *SHORT]) == 0
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["rows"], found["new_tokens"], found["device"]) == (3, 4, "cpu")
    methods = found["methods"]
    assert [one["method"] for one in methods.values()] == ["–", "prompt_tuning", "prefix_tuning", "lora"]
    for name, one in methods.items():
        assert len(one["tokens_per_second"]) == len(one["of_bare"]) == len(one["of_bare_by_cpu_seconds"]) == 2
        assert all(rate > 0 for rate in one["tokens_per_second"])
        assert name == "bare" or (one["parameters"] > 0 and one["bytes"] > 4 * one["parameters"])
    assert methods["bare"]["of_bare"] == [1.0, 1.0]
    assert "3 rows at once, 4 new tokens each, 2 rounds" in capsys.readouterr().out


class Noted:
    """An engine that notes who asked for what."""

    def __init__(self, short: int | None = -1) -> None:
        self.asked: list[int | None] = []
        self.rows: list[int] = []
        self.short = short

    def forget_texts(self) -> None:
        self.asked.append(-1)

    def run(self, jobs: list[Job]) -> Run:
        self.asked.append(jobs[0].task)
        self.rows.append(len(jobs))
        made = sum(job.new_tokens for job in jobs)
        return Run(seconds=2.0, tokens=made - 1 if self.short == jobs[0].task else made)


def test_they_take_turns_forwards_and_backwards_and_texts_are_forgotten_before_each() -> None:
    engine, found = Noted(), [Measured(name, ("", 0, 0)) for name in ("bare", "a", "b")]
    compare(engine, found, [(5, 6), (7,)], 3, 2)  # type: ignore[arg-type]
    assert engine.asked == [None, 0, 1, -1, None, -1, 0, -1, 1, -1, 1, -1, 0, -1, None]
    assert engine.rows == [2] * 9, "a round's whole batch has been run before the first round, too"
    assert [one.rates for one in found] == [[3.0, 3.0]] * 3


def test_one_that_makes_fewer_tokens_is_named() -> None:
    found = [Measured(name, ("", 0, 0)) for name in ("bare", "a")]
    with pytest.raises(InvalidRequest, match=r"a made 5 tokens of 6: .* Lower --new-tokens"):
        compare(Noted(short=0), found, [(5, 6), (7,)], 3, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "changes", "words"),
    [
        ({"template": "{p:5} {text}"}, [], "has a template: methods are compared on the same plain rows"),
        ({}, ["--rounds", "0"], "--rounds, --new-tokens and --rows are at least 1"),
        ({}, ["--set", "no_such=1"], "There is no setting no_such"),
    ],
)
def test_what_can_not_be_compared_is_refused(
    said: dict[str, str], changes: list[str], words: str, base: tuple[Any, Path], adapters: dict[str, Path],
    texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = shutil.copytree(adapters["prompt-tuning"], tmp_path / "task")
    (folder / "softmux.json").write_text(json.dumps(said))
    assert main(["methods", str(folder), "--model", str(base[1]), "--texts", str(texts), *SHORT, *changes]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, "can not be read (No such file or directory): give a file of text"),
        (b"\xff\xfe", "can not be read (it is not UTF-8): give a file of text"),
        (b"\n \n", "has no line of text"),
    ],
)
def test_texts_that_can_not_be_read_are_refused(
    written: bytes | None, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.txt"
    if written is not None:
        path.write_bytes(written)
    assert main(["methods", str(tmp_path), "--model", str(tmp_path), "--texts", str(path), *SHORT]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_recipes_that_hold_out_no_rows_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("softmux.bench.peers.methods.held_out", lambda folders: [])
    assert main(["methods", str(tmp_path), "--model", str(tmp_path), *SHORT]) == 2
    assert "The recipes hold out no rows: give some by --texts." in " ".join(capsys.readouterr().err.split())


def test_rows_come_from_the_recipes_where_they_hold_out_the_same(tmp_path: Path) -> None:
    def task(name: str, word: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        rows = [json.dumps({"prompt": f"{word} {i}", "answer": " yes" if i % 2 else " no"}) for i in range(60)]
        (folder / "rows.jsonl").write_text("\n".join(rows))
        (folder / "recipe.toml").write_text(
            f'task = "{name}"\n[data]\nsource = "file"\npath = "rows.jsonl"\n[method]\nkind = "prompt_tuning"\n'
            "virtual_tokens = 2\n[train]\nsteps = 1\nlearning_rate = 1e-2\n"
        )
        return folder

    one, same, other = task("one", "row"), task("same", "row"), task("other", "line")
    assert 0 < len(held_out([one, same])) < 20
    with pytest.raises(InvalidRequest, match="hold out other rows: give the rows for all by --texts"):
        held_out([one, other])
    (same / "recipe.toml").unlink()
    with pytest.raises(InvalidRequest, match=r"has no recipe\.toml that says its rows"):
        held_out([one, same])
