"""`softmux evaluate` of a task that a server has: the figures are those of the server's own answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from softmux.cli import app
from softmux.evaluation.trials import by_hash
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import is_test
from support.served import Served

RECIPE = """task = "toy"
base = "{base}"
[data]
source = "file"
path = "rows.jsonl"
[method]
kind = "prefix_tuning"
virtual_tokens = 4
[train]
steps = 1
learning_rate = 0.01
[evaluate]
metric = "starts_with"
max_tokens = 3
shots = 0
"""


def test_a_served_task_is_evaluated_as_it_answers(
    server: Served, base: tuple[Any, Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"film {n}" for n in range(90)]
    held_out = [text for text in texts if is_test(text)]
    answers = {}
    for text in held_out:
        body = {"prompt": text, "max_tokens": 3}
        reply = server.http.post("/v1/generate?task=prefix-tuning", json=body)
        assert reply.status_code == 200, reply.text
        answers[text] = reply.json()["choices"][0]["text"]
    said = [text for text, answer in answers.items() if answer.strip()]
    right = said[::2]  # the others' rows expect something else
    looked_at = sorted(held_out, key=lambda text: by_hash(Example(text, "")))[:5]
    rows = [{"prompt": text, "answer": answers[text] if text in right else "none of it"} for text in texts]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("recipe.toml").write_text(RECIPE.format(base=base[1]))
    arguments = ["evaluate", "prefix-tuning@1", "--recipe", "recipe.toml", "--device", "cpu", "--rows", "5", "--json"]
    done = CliRunner().invoke(app, arguments, env={"SOFTMUX_URL": server.url})
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["digest"] == server.http.get("/v1/adapters/prefix-tuning").json()["digest"]
    assert told["overall"]["rows"] == told["measured"] == 5
    assert told["rows"][2] == len(held_out)
    assert told["overall"]["value"] == len(set(right) & set(looked_at)) / 5 > 0
    assert [way["name"] for way in told["compared"]] == ["this task", "the bare model"]
    assert (tmp_path / "prefix-tuning@1-evaluation" / "evaluation.html").is_file()
    named = CliRunner().invoke(app, ["evaluate", "no-folder"])
    assert named.exit_code == 1
    assert "no-folder is no folder here, and a served task brings no recipe: give --recipe" in named.output
    missing = CliRunner().invoke(app, ["evaluate", "nope", "--recipe", "recipe.toml"], env={"SOFTMUX_URL": server.url})
    assert missing.exit_code == 1
    assert "nope" in missing.output
