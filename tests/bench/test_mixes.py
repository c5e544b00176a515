"""Tasks are drawn as often as the mix says."""

from __future__ import annotations

import numpy as np
import pytest

from softmux.bench.loads.mixes import TaskMix, parse_mix
from softmux.errors import InvalidRequest

COUNT = 40_000


def _shares(mix: TaskMix, tasks: int) -> np.ndarray:
    drawn = mix.draw(COUNT, tasks, np.random.default_rng(1))
    return np.bincount([task for task in drawn if task is not None], minlength=tasks) / COUNT


def test_zipf_falls_with_the_rank() -> None:
    weights = np.arange(1, 21) ** -1.0
    assert _shares(parse_mix("zipf:1"), 20) == pytest.approx(weights / weights.sum(), abs=0.01)


def test_uniform_is_even_and_leaves_the_bare_model_its_share() -> None:
    shares = _shares(parse_mix("uniform", 0.25), 5)
    assert shares == pytest.approx([0.15] * 5, abs=0.01)


def test_without_tasks_all_is_for_the_bare_model() -> None:
    assert TaskMix().draw(3, 0, np.random.default_rng()) == [None] * 3


def test_words_name_the_mix() -> None:
    assert parse_mix("zipf").exponent == 1.0
    assert parse_mix("zipf:0.9", 0.1).words() == "Zipf 0.9, 10% bare"


@pytest.mark.parametrize("text", ["", "zipf:x", "zipf:0", "zipf:-1", "uniform:2", "even"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="task mix"):
        parse_mix(text)


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 1"):
        parse_mix("uniform", 1.5)
