from __future__ import annotations

import pytest

from softmux.tuning.evaluate import score


def test_exact_is_the_whole_text_and_starts_with_its_beginning() -> None:
    texts, answers = [" Rome", " Rome, of course", "Rome"], [" Rome"] * 3
    assert score("exact", texts, answers) == {"exact": pytest.approx(1 / 3)}
    assert score("starts_with", texts, answers)["starts with"] == pytest.approx(2 / 3)


def test_field_f1_counts_pairs_and_broken_json_has_none() -> None:
    answers = [' {"A":"1","B":"2"}', ' {"A":"3"}', ' {"A":"4"}']
    texts = [' {"A":"1","B":"x","C":"2"}', ' {"A":"3"', " [1]"]
    values = score("json_fields", texts, answers)
    assert values["field F1"] == pytest.approx(2 * 1 / (3 + 4))
    assert values["valid JSON"] == pytest.approx(1 / 3)
    assert values["exact"] == 0
    assert score("json_fields", answers, answers) == {"field F1": 1, "valid JSON": 1, "exact": 1}
