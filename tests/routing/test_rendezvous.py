from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.routing import rendezvous
from softmux.routing.rendezvous import Rendezvous

NAMES = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=12)


@given(NAMES, st.text(max_size=20))
def test_an_order_has_every_replica_once_and_does_not_depend_on_who_asks(names: set[str], key: str) -> None:
    order = Rendezvous().order(key, names)
    assert set(order) == names
    assert len(order) == len(names)
    assert Rendezvous().order(key, sorted(names, reverse=True)) == order


@given(NAMES, st.lists(st.text(max_size=20), max_size=10), st.data())
def test_those_that_stay_keep_their_order_when_one_leaves(
    names: set[str], keys: list[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(names)))
    ring = Rendezvous()
    before = {key: ring.order(key, names) for key in keys}
    for key in keys:
        assert ring.order(key, names - {gone}) == tuple(name for name in before[key] if name != gone)
        assert ring.order(key, names) == before[key]  # and it is home again when it is back


def test_keys_are_spread_evenly_over_places() -> None:
    ring, names, keys = Rendezvous(), [f"r{number}" for number in range(10)], 10_000
    for place in (0, 1, 9):
        counts = Counter(ring.order(f"key {number}", names)[place] for number in range(keys))
        assert len(counts) == 10
        assert max(abs(count - keys / 10) for count in counts.values()) < 150  # five standard deviations


def test_it_forgets_rather_than_growing_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_CACHED", 10)
    ring = Rendezvous()
    orders = [ring.order(str(number), ("a", "b", "c")) for number in range(25)]
    assert len(ring._orders) <= 10
    assert [ring.order(str(number), ("a", "b", "c")) for number in range(25)] == orders
