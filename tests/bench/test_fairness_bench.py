"""The bench of neighbours: what it counts, and that the counters' bound holds in what it ran."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pytest

from softmux.bench.__main__ import main
from softmux.bench.services.fairness import CASES, Served


def test_the_gap_is_the_widest_of_any_stretch_in_which_both_wait() -> None:
    had = np.array([[0, 0], [10, 0], [10, 4], [10, 30], [50, 30], [53, 30]], np.float64)  # differs by 0 10 6 -20 20 23
    both = np.array([True, True, True, False, True, True])
    served = Served(np.arange(6.0), had, both, 1.0, np.zeros(1), 0)
    assert served.gap == 10, "what happened while one did not wait is nobody's loss"
    served.both[:] = False
    assert served.gap == 0


def test_every_case_is_run_and_told_and_those_who_wait_stay_within_the_bound(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures, plot = tmp_path / "figures.json", tmp_path / "fairness.svg"
    words = ["fairness", "--rows", "4", "--repeats", "1", "--json", str(figures), "--plot", str(plot)]
    for seconds in ("0.4", "4", "40"):  # a slow machine is asked for less
        with contextlib.suppress(SystemExit):
            assert main([*words, "--seconds", seconds]) == 0
            break
    found = json.loads(figures.read_text())
    assert len(found["cases"]) == len(CASES)
    assert found["bound"] > 0
    assert found["widest_gap"] <= found["bound"]
    assert all(sum(service) > 0 for service in found["course"]["fair"]["service"])
    assert plot.read_text().startswith("<?xml")


def test_a_run_in_which_nobody_was_asked_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fairness", "--rows", "4", "--seconds", "1e-9", "--repeats", "1"])
    assert "give more --seconds" in capsys.readouterr().err
