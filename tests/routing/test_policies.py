from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmux.routing.policies import ConsistentHashing, LeastLoaded, Policy, RandomChoice, WarmFirst

POLICIES: dict[str, Callable[[Random], Policy]] = {
    "random": RandomChoice,
    "least loaded": LeastLoaded,
    "consistent hashing": ConsistentHashing,
    "bounded loads": lambda random: ConsistentHashing(random, balance=1.25, free=2),
    "warm first": lambda random: WarmFirst(random, free=2, warm_keys=3),
}
LOADS = st.dictionaries(st.sampled_from([f"r{number}" for number in range(6)]), st.integers(0, 20), min_size=1)
KEYS = st.one_of(st.none(), st.sampled_from("abcdef"))


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=40)
@given(steps=st.lists(st.tuples(KEYS, LOADS, st.booleans()), max_size=12))
def test_every_policy_ranks_each_replica_once(name: str, steps: list[tuple[str | None, dict[str, int], bool]]) -> None:
    policy = POLICIES[name](Random(0))
    for key, loads, leaves in steps:
        ranked = policy.rank(key, loads)
        assert sorted(ranked) == sorted(loads)
        policy.sent(key, ranked[0])
        if leaves:
            policy.left(ranked[0])
    assert policy.rank("a", {}) == []


@pytest.mark.parametrize("name", ["bounded loads", "warm first"])
@given(loads=LOADS, key=st.sampled_from("abcdef"), warm=st.sets(st.sampled_from([f"r{number}" for number in range(6)])))
def test_no_replica_is_loaded_beyond_the_bound_while_another_is_below(
    name: str, loads: dict[str, int], key: str, warm: set[str]
) -> None:
    policy = POLICIES[name](Random(0))
    for replica in sorted(warm):
        policy.sent(key, replica)
    first = policy.rank(key, loads)[0]
    bound = max(2, -(-1.25 * (sum(loads.values()) + 1) // len(loads)))
    assert loads[first] + 1 <= bound, "a bound above the mean leaves room somewhere"


def test_a_key_goes_home_until_home_is_full_and_then_to_the_next_always_the_same() -> None:
    policy = ConsistentHashing(Random(0), balance=1.25, free=2)
    first, second, *_ = order = policy.rank("task", dict.fromkeys("abcd", 0))
    assert policy.rank("task", dict.fromkeys("abcd", 0) | {first: 1}) == order
    full = dict.fromkeys("abcd", 0) | {first: 2}
    assert policy.rank("task", full)[0] == second
    assert policy.rank("task", full)[-1] == first


def test_a_key_stays_where_it_is_warm_when_a_replica_joins() -> None:
    policy = WarmFirst(Random(0))
    before = dict.fromkeys("abc", 0)
    keys = [f"task {number}" for number in range(200)]
    homes = {key: policy.rank(key, before)[0] for key in keys}
    for key, home in homes.items():
        policy.sent(key, home)
    after = before | {"d": 0}
    assert {key: policy.rank(key, after)[0] for key in keys} == homes
    assert {policy.rank(f"new {number}", after)[0] for number in range(50)} == set("abcd")
    busy = {**dict.fromkeys("abc", 30), "d": 0}
    assert {policy.rank(key, busy)[0] for key in keys} == {"d"}  # load moves them


def test_a_key_that_one_replica_dropped_is_at_home_again() -> None:
    policy = WarmFirst(Random(0), warm_keys=2)
    loads = dict.fromkeys("abcd", 0)
    home, _, third, _ = policy.rank("task", loads)
    policy.sent("task", third)
    assert policy.rank("task", loads)[0] == third
    for other in ("x", "y"):
        policy.sent(other, third)
    assert policy.rank("task", loads)[0] == home


def test_a_key_that_is_warm_at_several_goes_to_the_first_of_them_until_it_has_enough_to_do() -> None:
    policy = WarmFirst(Random(0), free=4)
    first, second, *rest = policy.rank("task", dict.fromkeys("abcd", 0))
    for replica in (first, second):
        policy.sent("task", replica)
    assert policy.rank("task", {**dict.fromkeys(rest, 0), first: 3, second: 0})[0] == first
    assert policy.rank("task", {**dict.fromkeys(rest, 8), first: 5, second: 4})[0] == second
    assert policy.rank("task", {**dict.fromkeys(rest, 0), first: 4, second: 4})[0] in rest  # both are full


def test_what_left_is_warm_no_more() -> None:
    policy = WarmFirst(Random(0))
    loads = dict.fromkeys("abcd", 0)
    home, _, third, _ = policy.rank("task", loads)
    policy.sent("task", third)
    policy.left(third)
    assert policy.rank("task", loads)[0] == home


def test_the_less_loaded_of_two_is_taken() -> None:
    policy = LeastLoaded(Random(0))
    counts = Counter(policy.rank("task", {"a": 0, "b": 1, "c": 2, "d": 3})[0] for _ in range(6000))
    assert counts["d"] == 0
    assert 2800 < counts["a"] < 3200  # half of all pairs have it
    assert 800 < counts["c"] < 1200  # only the pair with the last


def test_a_request_of_no_task_goes_to_where_there_is_less_to_do() -> None:
    for policy in (WarmFirst(Random(0)), ConsistentHashing(Random(0))):
        assert {policy.rank(None, {"a": 3, "b": 0})[0] for _ in range(20)} == {"b"}


def test_a_bound_below_the_mean_is_refused() -> None:
    with pytest.raises(ValueError, match="1 at least"):
        WarmFirst(Random(0), balance=0.9)
