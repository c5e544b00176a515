"""Lengths are drawn from the distribution that was named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from softmux.bench.loads.lengths import parse_lengths
from softmux.errors import InvalidRequest


def _drawn(text: str, count: int = 20_000) -> np.ndarray:
    return np.array(parse_lengths(text).draw(count, np.random.default_rng(2)))


def test_fixed() -> None:
    assert set(_drawn("17")) == {17}


def test_uniform_reaches_both_ends() -> None:
    drawn = _drawn("uniform:3:6")
    assert np.bincount(drawn, minlength=7)[3:] / drawn.size == pytest.approx([0.25] * 4, abs=0.02)


def test_lognormal_has_its_median_and_spread_and_ends_at_its_maximum() -> None:
    logs = np.log(_drawn("lognormal:400:0.5"))
    assert np.median(logs) == pytest.approx(np.log(400), abs=0.02)
    assert logs.std() == pytest.approx(0.5, abs=0.02)
    capped = _drawn("lognormal:400:0.5:500")
    assert capped.max() == 500
    assert (capped == 500).mean() == pytest.approx(0.33, abs=0.03)
    assert _drawn("lognormal:1:3").min() == 1


def test_a_file_gives_its_own_lengths(tmp_path: Path) -> None:
    path = tmp_path / "lengths.txt"
    path.write_text("5\n5\n5\n9\n")
    drawn = _drawn(f"file:{path}")
    assert set(drawn) == {5, 9}
    assert (drawn == 5).mean() == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(
    "text",
    ["", "0", "-3", "uniform:5:3", "uniform:0:3", "uniform:1", "lognormal:9", "lognormal:0:1", "normal:1:2"],
)
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="A length is"):
        parse_lengths(text)


def test_a_file_without_lengths_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        parse_lengths(f"file:{tmp_path / 'none'}")
    empty = tmp_path / "empty"
    empty.write_text("3\n0\n")
    with pytest.raises(InvalidRequest, match="at least 1"):
        parse_lengths(f"file:{empty}")
