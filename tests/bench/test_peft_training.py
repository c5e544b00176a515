"""`softmux bench peft-training`: one task by both trainers, from one start, on one split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softmux.bench.__main__ import main
from support.tiny_llama import tiny_llama

ROWS = "prompt,answer\n" + "".join(
    f"film {number} was {('dull', 'gripping')[number % 2]},{(' no', ' yes')[number % 2]}\n" for number in range(60)
)
RECIPE = """
task = "toy"
base = "{base}"
[data]
source = "file"
path = "rows.csv"
[method]
{method}
[train]
steps = 6
batch_rows = 4
learning_rate = 0.05
validate_every = 3
[evaluate]
max_tokens = 3
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_llama(folder)
    return folder


def recipe(folder: Path, base: Path, method: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "rows.csv").write_text(ROWS)
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(base=base, method=method))
    return path


@pytest.mark.parametrize(
    "method",
    [
        'kind = "prompt_tuning"\nvirtual_tokens = 4',
        'kind = "prefix_tuning"\nvirtual_tokens = 4\nprojection = true\nencoder_hidden_size = 16',
        'kind = "lora"\nrank = 2\nalpha = 4',
    ],
)
def test_both_trainers_are_measured_by_seed(
    method: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = recipe(tmp_path / "toy", base, method), tmp_path / "figures.json"
    assert main(["peft-training", str(path), "--seeds", "0", "1", "--device", "cpu", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["toy, softmux", "toy, PEFT"]
    assert all("for 2 seeds" in line for line in lines)
    said = json.loads(out.read_text())["toy"]
    assert [len(said[name]["figures"]) for name in ("softmux", "PEFT")] == [2, 2]
    assert all(0 <= figures["exact"] <= 1 for one in said.values() for figures in one["figures"])


def test_what_peft_does_not_train_by_itself_is_refused(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = 'kind = "lora+prefix_tuning"\nvirtual_tokens = 2\nrank = 2\nalpha = 4'
    assert main(["peft-training", str(recipe(tmp_path / "toy", base, method))]) == 2
    assert "PEFT trains prompts in front of the input" in " ".join(capsys.readouterr().err.split())
