from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.routing.warmth import Warmth


@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from(["r1", "r2", "r3"]), st.booleans()), max_size=60),
)
def test_it_is_a_least_recently_used_cache_for_each_replica(capacity: int, steps: list[tuple[str, str, bool]]) -> None:
    """Against lists, one for each replica, with `forget` now and then."""
    warmth, model = Warmth(capacity), {name: list[str]() for name in ("r1", "r2", "r3")}
    for key, replica, forget in steps:
        if forget and key == "a":
            warmth.forget(replica)
            model[replica] = []
        else:
            warmth.sent(key, replica)
            model[replica] = [*(kept for kept in model[replica] if kept != key), key][-capacity:]
        warmth.check_integrity()
        for asked in "abcdefg":
            assert set(warmth.places(asked)) == {name for name, keys in model.items() if asked in keys}


def test_a_replica_keeps_something() -> None:
    with pytest.raises(ValueError, match="one key"):
        Warmth(0)
