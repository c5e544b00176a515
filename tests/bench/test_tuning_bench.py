"""`softmux bench tuning`: each part measures what it says."""

from __future__ import annotations

import pytest
import torch

from softmux.bench.training import tuning
from softmux.bench.training.tuning import Sizes, alone, exact, mixed, peft, summary, together

SIZES = Sizes(tasks=4, rows=2, tokens=40, steps=1)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    monkeypatch.setitem(tuning.SHAPES, "tiny", tuning.SHAPES["tiny"] | small | {"vocab_size": 300})


def test_tasks_at_once_one_by_one_and_with_peft_are_measured_alike() -> None:
    found = {f"{part.__name__} tiny": part("tiny", SIZES, CPU) for part in (together, alone, peft)}
    assert found["together tiny"]["tasks"] == 4
    assert found["alone tiny"]["tasks"] == 1
    for figures in found.values():
        per_task = figures["step_ms"] / figures.get("tasks", 1)
        assert figures["tasks_an_hour"] == pytest.approx(3600e3 / (500 * per_task))
    found["rate tiny"] = {"tflops": 2 * found["together tiny"]["model_tflops"]}
    said = "\n".join(summary(found))
    assert "tiny: 50.0% of the measured bf16 rate" in said
    assert "x PEFT and the Hugging Face trainer" in said
    assert "x this trainer, one by one" in said


def test_mixed_methods_run_and_their_gradients_are_their_own() -> None:
    assert mixed("tiny", SIZES, CPU)["tasks"] == 4
    assert exact("tiny", SIZES, CPU, steps=3)["gradients_apart"] < 1e-5


def test_a_part_is_a_process_and_one_that_takes_too_long_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuning.main(["--parts", "rate", "--shapes", "tiny", "--device", "cpu", "--timeout", "0"]) == 0
    assert "stopped after 0 s" in capsys.readouterr().out
