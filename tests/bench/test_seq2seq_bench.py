"""`softmux bench seq2seq` on a tiny encoder-decoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softmux.bench.__main__ import main
from softmux.bench.peers.peers import LOOPED
from softmux.bench.peers.seq2seq import PEFT, REQUESTS, SOFTMUX, TASKS
from support.encoder_decoders import make_base


def test_both_answer_the_same_load_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_base("t5", tmp_path / "base")
    figures = tmp_path / "figures.json"
    short = ["--repeats", "2", "--input-len", "uniform:2:4", "--output-len", "3", "--threads", "1"]
    assert main(["seq2seq", "--model", str(tmp_path / "base"), *short, "--json", str(figures)]) == 0
    found = json.loads(figures.read_text())
    assert f"{TASKS} tasks" in found["load"]
    counted = {name: [repeat["completed"] for repeat in one["repeats"]] for name, one in found["targets"].items()}
    assert counted == {PEFT: [LOOPED] * 2, SOFTMUX: [REQUESTS] * 2}
    assert all(rate > 0 for rate in found["ratios_of_output_throughput"][SOFTMUX])
    assert len(found["cpu_ratios"]) == 2
    assert "× PEFT in CPU seconds" in capsys.readouterr().out
