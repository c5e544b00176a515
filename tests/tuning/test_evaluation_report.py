"""Reports of tasks tuned on a tiny base: figures are those that PEFT's own model gives, whatever else is asked."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from softmux.cli import app
from softmux.errors import InvalidRequest
from softmux.evaluation.report import as_json
from softmux.evaluation.run import evaluate
from softmux.tuning.data.examples import BadData

Write = Callable[..., Path]
QUIET = Console(file=io.StringIO())


@pytest.fixture
def classes(write_recipe: Write, base_folder: Path) -> Path:
    """A recipe of a task with a template and two answers; one text is HTML."""
    rows = ["prompt,answer"]
    for number in range(140):
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


def test_two_tasks_are_tuned_and_measured_in_one_engine_as_peft_measures_them(classes: Path, tmp_path: Path) -> None:
    second = classes.parent / "second.toml"
    text = classes.read_text().replace('task = "toy"', 'task = "second"')
    begin, end = text.index("[method]"), text.index("[train]")
    second.write_text(
        text[:begin] + '[method]\nkind = "prefix_tuning"\nvirtual_tokens = 3\nprojection = false\n' + text[end:]
    )
    options = ("--out", str(tmp_path / "out"), "--device", "cpu", "--json", "--save-every", "0")
    done = CliRunner().invoke(app, ["tune", str(classes), str(second), *options])
    assert done.exit_code == 0, done.output
    for figures in json.loads(done.stdout):
        out = tmp_path / "out" / figures["task"]
        told = json.loads((out / "evaluation.json").read_text())
        by_peft, bare = figures["figures"].values()
        assert told["overall"]["value"] == pytest.approx(by_peft["exact"])
        assert told["overall"]["rows"] == told["measured"] == told["rows"][2] == by_peft["rows"]
        by_label = [way["figure"]["value"] for way in told["compared_labels"][:2]]
        assert by_label == pytest.approx([by_peft["label accuracy"], bare["label accuracy"]])
        assert told["verdict"]["ship"] == figures["verdict"] == "cannot tell"
        assert told["trained_lengths"] == json.loads((out / "softmux.json").read_text())["trained_lengths"]
        assert names(told["compared"]) == ["this task", "the bare model", "2 examples in the prompt"]
        assert names(told["changes"]) == ["typos", "truncated", "code-mixed"]
        assert names(told["domain"])[-1] == "another domain"
        assert told["domain"][-1]["figure"]["rows"] == 26
        as_they_are = [way for way in told["beyond"] if way["note"] == "held-out rows as they are"]
        assert sum(way["figure"]["rows"] for way in (*told["lengths"], *as_they_are)) == by_peft["rows"]
        assert told["distances"][0]["tokens"] == 0
        assert told["distances"][-1]["tokens"] > 20
        assert all(distance["gain"] is not None for distance in told["distances"])
        assert len(told["nearest"]) == (3 if figures["task"] == "toy" else 0), "keys and values have none"
        page = (out / "evaluation.html").read_text()
        assert "&lt;b&gt;" in page
        assert "<b>" not in page, "the rows' texts are escaped"
        assert "held-out rows are measured, fewer than 100" in page
        assert not [file for file in out.iterdir() if file.name.startswith(".")]
    toy = tmp_path / "out" / "toy"
    first = json.loads((toy / "evaluation.json").read_text())
    alone = json.loads(json.dumps(as_json(evaluate(toy, classes, tmp_path / "again", "cpu", console=QUIET))))
    gains = [[distance.pop("gain") for distance in told["distances"]] for told in (first, alone)]
    assert gains[0] == pytest.approx(gains[1], abs=1e-5)
    for name in ("overall", "compared_labels", "changes", "distances", "mistakes"):
        assert first[name] == alone[name], "the same alone as beside another task"
    with pytest.raises(BadData, match=r"out/toy/rows\.csv: there is no such file"):
        evaluate(toy, device="cpu", console=QUIET)  # the recipe's rows are where it was
    (toy / "recipe.toml").unlink()
    with pytest.raises(InvalidRequest, match=r"There is no recipe at .*out/toy/recipe\.toml"):
        evaluate(toy, device="cpu", console=QUIET)


def names(ways: list[dict[str, Any]]) -> list[str]:
    return [way["name"] for way in ways]


@pytest.mark.nightly
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
