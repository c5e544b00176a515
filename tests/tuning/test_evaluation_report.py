"""Reports of tasks tuned on a tiny base: figures are those that PEFT's own model gives, whatever else is asked."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from softmux.cli import app
from softmux.errors import InvalidRequest
from softmux.evaluation.report import as_json
from softmux.evaluation.run import Subject, evaluate, evaluate_all
from softmux.formats.folder import load_folder
from softmux.tuning.run import tune
from softmux.tuning.together import Together
from softmux.tuning.write import Report

Write = Callable[..., Path]
QUIET = Console(file=io.StringIO())


def tuned(recipe: Path, out: Path) -> Report:
    return tune(recipe, out, "cpu", console=QUIET, together=Together(save_every=0))


@pytest.fixture
def classes(write_recipe: Write, base_folder: Path) -> Path:
    """A recipe of a task with a template and two answers; one text is HTML."""
    rows = ["prompt,answer"]
    for number in range(160):
        word = ("dull", "gripping")[number % 2]
        rows.append(f"{'far too long ' * (number % 3)}film {number} was {word} <b>,{(' no', ' yes')[number % 2]}")
    recipe = write_recipe(
        "p_tuning_template", steps=12, extra=f'base = "{base_folder}"\n', data="\n".join(rows).encode()
    )
    more = "report_rows = 60\nshots = 1\n[evaluate.elsewhere]\nsource = 'file'\npath = 'other.csv'\n"
    recipe.write_text(recipe.read_text() + more)
    (recipe.parent / "other.csv").write_text(
        "prompt,answer\n" + "".join(f"book {n} was dull, no\n" for n in range(25)) + "a, yes\n"
    )
    return recipe


def test_two_tasks_of_one_engine_are_measured_as_peft_measures_them(classes: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.toml"
    text = classes.read_text().replace('task = "toy"', 'task = "second"').replace("rows.csv", "task/rows.csv")
    begin, end = text.index("[method]"), text.index("[train]")
    text = text[:begin] + '[method]\nkind = "prefix_tuning"\nvirtual_tokens = 3\nprojection = false\n' + text[end:]
    second.write_text(text.replace("other.csv", "task/other.csv"))
    outs = {classes: tmp_path / "one", second: tmp_path / "two"}
    reports = {recipe: tuned(recipe, out) for recipe, out in outs.items()}
    subjects = [Subject(load_folder(out), recipe, out) for recipe, out in outs.items()]
    found = evaluate_all(subjects, "cpu", console=QUIET)
    for one, (recipe, report) in zip(found, reports.items(), strict=True):
        assert one.overall.value == pytest.approx(report.tuned.values["exact"])
        assert one.overall.rows == one.measured == one.rows[2] == report.rows[2]
        assert one.trained_lengths == report.lengths
        assert [way.name for way in one.compared] == ["this task", "the bare model", "2 examples in the prompt"]
        labels = [report.tuned, *report.beside.values()]
        assert [way.figure.value for way in one.compared_labels[:2]] == pytest.approx(
            [figures.values["label accuracy"] for figures in labels]
        )
        assert {way.name for way in one.changes} == {"typos", "truncated", "code-mixed"}
        assert [way.name for way in one.domain][-1] == "another domain"
        assert one.domain[-1].figure.rows == 26
        assert (
            sum(way.figure.rows for way in one.lengths)
            + sum(way.figure.rows for way in one.beyond if way.note == "held-out rows as they are")
            == report.rows[2]
        )
        assert one.distances[0].tokens == 0
        assert one.distances[-1].tokens > 20
        assert all(distance.gain is not None for distance in one.distances)
        told = json.loads((outs[recipe] / "evaluation.json").read_text())
        assert told["overall"]["value"] == one.overall.value
        assert told["verdict"]["ship"] == one.verdict.ship
        assert not [file for file in outs[recipe].iterdir() if file.name.startswith(".")]
    assert len(found[0].nearest) == found[0].virtual_tokens, "each vector has its nearest tokens"
    assert found[1].nearest == (), "keys and values have none"
    page = (tmp_path / "one" / "evaluation.html").read_text()
    assert page.count("<b>") == 0, "the rows' texts are escaped"
    assert "&lt;b&gt;" in page
    again = evaluate(tmp_path / "one", classes, tmp_path / "again", "cpu", console=QUIET)
    first, alone = (json.loads(json.dumps(as_json(one))) for one in (found[0], again))
    gains = [[distance.pop("gain") for distance in told["distances"]] for told in (first, alone)]
    assert gains[0] == pytest.approx(gains[1], abs=1e-5)
    for name in ("overall", "compared_labels", "changes", "distances", "mistakes"):
        assert first[name] == alone[name], "the same alone as beside another task"


def test_the_commands_write_the_report(classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["tune", str(classes), "--out", str(out), "--device", "cpu", "--json", "--save-every", "0"]
    )
    assert done.exit_code == 0, done.output
    first = json.loads((out / "evaluation.json").read_text())
    told = json.loads(done.stdout)
    assert told[0]["verdict"] == first["verdict"]["ship"]
    for file in ("rows.csv", "other.csv"):
        (out / file).write_bytes((classes.parent / file).read_bytes())
    looked = CliRunner().invoke(app, ["evaluate", str(out), "--rows", "12", "--device", "cpu", "--json"])
    assert looked.exit_code == 0, looked.output
    assert json.loads(looked.stdout)["measured"] == 12
    assert json.loads(looked.stdout)["verdict"]["ship"] == "cannot tell"
    assert "12 held-out rows are measured, fewer than 100" in (out / "evaluation.html").read_text()
    named = CliRunner().invoke(app, ["evaluate", "no-folder"])
    assert named.exit_code == 1
    assert "no-folder is no folder here, and a served task brings no recipe: give --recipe" in named.output
    classes.write_text(classes.read_text().replace("steps = 12", "steps = 1"))
    tuned(classes, out)
    assert not (out / "evaluation.json").exists(), "it was of other vectors"
    (out / "recipe.toml").unlink()
    with pytest.raises(InvalidRequest, match=r"There is no recipe at .*out/recipe\.toml"):
        evaluate(out, device="cpu", console=QUIET)


def test_what_can_be_tuned_but_not_served_is_kept_and_said(
    write_recipe: Write, base_folder: Path, tmp_path: Path
) -> None:
    method = 'kind = "lora"\nrank = 130\nalpha = 1\ntarget_modules = ["q_proj"]'
    recipe = write_recipe(method, steps=1, extra=f'base = "{base_folder}"\n')
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["tune", str(recipe), "--out", str(out), "--device", "cpu", "--save-every", "0"])
    assert done.exit_code == 0, done.output
    assert "tuned, but not evaluated: " in done.output
    assert "130" in done.output
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "evaluation.json").exists()
