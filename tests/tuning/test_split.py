from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.errors import InvalidRequest
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import is_held_back, is_test, is_validation, split


@given(st.text())
def test_the_test_rows_are_those_the_rule_names(text: str) -> None:
    number = int(hashlib.sha256(text.encode()).hexdigest(), 16)
    assert is_test(text) == (number % 10 == 0)
    assert is_held_back(text) == (is_test(text) or is_validation(text))


@given(st.lists(st.text(), min_size=120, unique=True), st.integers(1, 20))
def test_the_parts_are_disjoint_complete_and_follow_the_rule(texts: list[str], most: int) -> None:
    examples = [Example(text, " x") for text in texts]
    parts = split(examples, most)
    assert [row.text for row in parts.test] == [text for text in texts if is_test(text)]
    assert len(parts.validation) <= most
    assert all(is_validation(row.text) and not is_test(row.text) for row in parts.validation)
    assert sorted((*parts.train, *parts.validation, *parts.test), key=repr) == sorted(examples, key=repr)


def test_a_capped_validation_part_does_not_follow_the_order_of_the_rows() -> None:
    examples = [Example(f"row {i}", " x") for i in range(2000)]
    forwards, backwards = split(examples, 20), split(examples[::-1], 20)
    assert set(forwards.validation) == set(backwards.validation)


def test_a_part_without_rows_is_an_error_that_names_it() -> None:
    with pytest.raises(InvalidRequest, match="no validation row"):
        split([Example(text, " x") for text in map(str, range(100)) if not is_validation(text)], 10)
