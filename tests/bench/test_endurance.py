from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from softmux.bench.services import endurance
from softmux.bench.services.endurance import Task
from softmux.bench.services.memory import slope
from softmux.bench.services.processes import family, resident_by_kind


def test_a_reply_is_held_against_what_was_active_meanwhile() -> None:
    task = Task("t", held=[["a", 0.0, 5.0], ["b", 4.0, math.inf]], gone=[[10.0, 12.0]])
    assert task.may_answer("a", sent=4.5, now=6.0), "asked before the change was done"
    assert not task.may_answer("a", sent=5.1, now=6.0), "the change was done before it was asked"
    assert task.may_answer("b", sent=3.0, now=4.1)
    assert not task.may_answer("b", sent=3.0, now=3.9)
    assert not task.may_answer("c", sent=0.0, now=9.0)
    assert task.may_be_gone(sent=9.0, now=11.0)
    assert not task.may_be_gone(sent=12.5, now=13.0)


def test_growth_is_what_follows_the_warm_up() -> None:
    assert slope([(0, 0), (1, 100), (2, 100), (3, 100), (4, 100), (5, 100)]) == pytest.approx(0)
    assert slope([(x, 3 * x + 7) for x in range(9)]) == pytest.approx(3)


def test_processes_are_found() -> None:
    assert os.getpid() in family(os.getpid())
    assert resident_by_kind(os.getpid())["server"] > 1 << 20


def test_a_short_day(tmp_path: Path) -> None:
    options = ["--requests", "300", "--tasks", "4", "--clients", "8", "--writers", "2", "--overwrites", "20"]
    assert endurance.main([*options, "--output-json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["wrong"] == []
    assert found["counts"]["requests"] == 300
    assert found["counts"]["overwrites"] >= 20
    assert found["counts"]["blobs left"] == 0
    assert set(found["bytes_per_1000_requests"]) == {"server", "api", "worker", "registry"}
