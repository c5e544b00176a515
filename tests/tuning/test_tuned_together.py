"""Several recipes in one run: what is written, what is said, and what a kill leaves."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file
from typer.testing import CliRunner

from softmux.cli import app
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.tuning.run import tune, tune_all
from softmux.tuning.training import many
from softmux.tuning.training.board import Board, curve, shown
from softmux.tuning.training.checkpoint import Checkpoint
from softmux.tuning.training.together import Together
from softmux.tuning.training.trainer import Progress
from support.killed_runs import killed_after
from support.recipe_methods import METHODS

LORA = 'kind = "lora"\nrank = 2\nalpha = 4\ntarget_modules = ["q_proj"]'
WANTED = {"a": METHODS["prompt_tuning"], "b": METHODS["prefix_projected"], "c": LORA}


def write(folder: Path, base: Path, rows: bytes, name: str, method: str, train: str = "steps = 12") -> Path:
    own = folder / name
    own.mkdir()
    (own / "rows.csv").write_bytes(rows)
    recipe = own / "recipe.toml"
    recipe.write_text(
        f'task = "{name}"\nbase = "{base}"\n[data]\nsource = "file"\npath = "rows.csv"\n[method]\n{method}\n'
        f"[train]\n{train}\nbatch_rows = 8\nlearning_rate = 0.05\nwarmup_steps = 2\nvalidate_every = 4\n"
        '[evaluate]\nmetric = "exact"\nmax_tokens = 4\nbare = false\n'
    )
    return recipe


@pytest.fixture
def recipes(tmp_path: Path, base_folder: Path, table: bytes) -> list[Path]:
    return [write(tmp_path, base_folder, table, name, method) for name, method in WANTED.items()]


def vectors(folder: Path) -> dict[str, object]:
    return load_file(folder / "adapter_model.safetensors")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def test_recipes_of_one_base_train_at_once_and_each_ends_as_it_would_alone(recipes: list[Path], tmp_path: Path) -> None:
    said = quiet()
    reports = tune_all(recipes, tmp_path / "out", "cpu", console=said, together=Together(kept=tmp_path / "kept"))
    assert [report.recipe.task for report in reports] == list(WANTED)
    for recipe, name in zip(recipes, WANTED, strict=True):
        tune(recipe, tmp_path / "alone" / name, "cpu", console=quiet(), together=Together(kept=tmp_path / "kept"))
        alone, among = vectors(tmp_path / "alone" / name), vectors(tmp_path / "out" / name)
        for key, value in alone.items():
            assert (value - among[key]).abs().max() < 1e-3 * value.abs().max()
    assert not list((tmp_path / "kept").iterdir()), "a run that is written keeps nothing"


def test_two_recipes_of_one_name_and_a_broken_task_are_said(
    recipes: list[Path], tmp_path: Path, base_folder: Path, table: bytes
) -> None:
    with pytest.raises(InvalidRequest, match="2 recipes are of the task a"):
        tune_all([recipes[0], recipes[0]], tmp_path / "out", "cpu", console=quiet())
    beside = recipes[0].with_name("other.toml")
    beside.write_text(recipes[0].read_text().replace('task = "a"', 'task = "other"'))
    with pytest.raises(InvalidRequest, match="2 recipes would write the folder"):
        tune_all([recipes[0], beside], None, "cpu", console=quiet())
    wild = write(tmp_path, base_folder, table, "wild", METHODS["prefix_direct"], "steps = 12\nclip_norm = 1e30")
    wild.write_text(wild.read_text().replace("learning_rate = 0.05", "learning_rate = 1e38"))
    with pytest.raises(SoftmuxError, match=r"wild: The loss is (nan|inf) at step \d+: lower train.learning_rate"):
        tune_all([recipes[0], wild], tmp_path / "out", "cpu", console=quiet(), together=Together(kept=tmp_path / "k"))
    assert (tmp_path / "out" / "a" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "out" / "wild").exists()
    arguments = ["tune", str(recipes[0]), str(wild), "--out", str(tmp_path / "cli"), "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path / "k"), "--no-report"])
    assert done.exit_code == 1
    assert [one["task"] for one in json.loads(done.stdout)] == ["a"], "what was learned is told"
    assert "wild: The loss is" in done.stderr


def test_the_command_takes_many(recipes: list[Path], tmp_path: Path) -> None:
    arguments = ["tune", *map(str, recipes), "--out", str(tmp_path / "out"), "--device", "cpu", "--no-report"]
    done = CliRunner().invoke(app, [*arguments, "--cache", str(tmp_path / "cache"), "--at-once", "2"])
    assert done.exit_code == 0, done.output
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == list(WANTED)


@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.nightly)])
def test_a_killed_run_goes_on_and_ends_with_the_same_vectors(
    kills: int, tmp_path: Path, base_folder: Path, table: bytes
) -> None:
    steps = f"steps = {40 * kills}\npatience = 1000"
    recipes = [write(tmp_path, base_folder, table, name, method, steps) for name, method in WANTED.items()]
    whole = Together(kept=tmp_path / "other", save_every=0)
    tune_all(recipes, tmp_path / "whole", "cpu", console=quiet(), together=whole)
    kept = tmp_path / "kept"
    for _ in range(kills):
        assert killed_after(2, recipes, tmp_path / "out", kept)
        assert not (tmp_path / "out").exists(), "nothing is written before all is there"
    said = quiet()
    tune_all(recipes, tmp_path / "out", "cpu", console=said, together=Together(kept=kept / "tuning", save_every=3))
    assert "going on from step" in said.file.getvalue()  # type: ignore[attr-defined]
    for name in WANTED:
        for key, value in vectors(tmp_path / "whole" / name).items():
            assert value.equal(vectors(tmp_path / "out" / name)[key])


def test_another_recipe_and_fresh_begin_anew_and_a_broken_file_is_no_reason_to_fail(
    recipes: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"

    def told(**how: object) -> str:
        said = quiet()
        tune(recipes[0], tmp_path / "out", "cpu", console=said, together=Together(kept=kept, **how))  # type: ignore[arg-type]
        return said.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    with monkeypatch.context() as leaving:
        leaving.setattr(Checkpoint, "remove", lambda self: None)
        assert "going on" not in told()
        (file,) = kept.iterdir()
        assert "going on from step 12" in told()
        leaving.setattr(many, "tokens_at_once", lambda base: 300)  # a device with less free memory than before
        assert "going on from step 12" in told()
        assert "going on" not in told(tokens=300), "another number that is asked for is another run"
        file.write_bytes(b"no such thing")
        assert "going on" not in told()
        assert "going on from step 12" in told(), "it was written anew"
    assert "going on" not in told(fresh=True)


def test_the_board_shows_a_line_a_task_and_tensorboard_gets_its_files(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    said = Console(file=io.StringIO(), width=120)
    with shown(said, {"a": 4, "b": 4}, tmp_path / "tb") as board:
        for step in range(1, 5):
            board.see("a", Progress(step, 4.0 / step, 1.5 if step > 1 else None))
            if step == 3:
                said.print(board)
    text = said.file.getvalue()  # type: ignore[attr-defined]
    assert "3/4" in text
    assert "0/4" in text
    assert "1.5000" in text
    assert curve([4, 3, 2, 1], 4) == "█▆▃▁"
    assert curve([], 4) == ""
    assert curve([1, 1], 4) == "▁▁"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [event.value for event in events.Scalars("a/loss")] == pytest.approx([4, 2, 4 / 3, 1])
    assert [event.step for event in events.Scalars("a/validation")] == [2]
    assert isinstance(board, Board)
