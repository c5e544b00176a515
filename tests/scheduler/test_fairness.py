"""Whose turn it is: bounded differences between tenants that wait, weights, priorities, nobody starved or idle."""

from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softmux.errors import Overloaded, SoftmuxError
from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.queue import TenantLines
from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import PRIORITY_SECONDS, Sequence
from softmux.types import SamplingParams
from support.simulated_engine import Adapter, FakeEngine, Shelf, rows_of


class Scene:
    """Tenants on a scheduler whose pool holds every row at its longest, so that M is `rows` times that length.

    `served` is what was computed for each tenant, counted here from the batches and not by the scheduler.
    """

    def __init__(self, *, rows: int = 4, budget: int = 16, longest: int = 32, slots: int = 0, **options: int) -> None:
        self.shelf = Shelf([Adapter(RootKey("a", name, "f", "d"), 0, trained=False, delay=0) for name in "xy"])
        self.shelf.there.update(self.shelf.adapters)
        slots = slots or rows * longest
        self.scheduler = Scheduler(
            slots=slots, max_rows=rows, max_step_tokens=budget, context_length=longest, eos=(), shelf=self.shelf,
            **options,
        )  # fmt: skip
        self.device = FakeEngine(self.scheduler, self.shelf, slots, rows)
        self.draw = random.Random(0)
        self.served: defaultdict[str, float] = defaultdict(float)
        self.began: list[Sequence] = []
        """In the order in which they first ran."""
        self.failed: list[tuple[Sequence, SoftmuxError]] = []
        self.count = self.steps = 0

    def add(
        self, tenant: str, tokens: int = 4, new: int = 4, *, weight: float = 1.0, priority: int = 0,
        digest: str | None = None, arrival: float | None = None,
    ) -> Sequence:  # fmt: skip
        self.count += 1
        prompt = [self.draw.randrange(3, 1 << 20) for _ in range(tokens)]  # nothing is in the cache
        sequence = Sequence(
            str(self.count), b"c", RootKey(tenant, digest, "f", "d"), prompt,
            SamplingParams(max_tokens=new, ignore_eos=True),
            arrival=float(self.steps) if arrival is None else arrival, priority=priority, weight=weight,
        )  # fmt: skip
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> int:
        """Runs one; how many rows it had."""
        batch, failed = self.scheduler.next(float(self.steps))
        self.failed += failed
        rows = rows_of(batch)
        for row in rows:
            decode = row.start >= row.sequence.prompt_length
            self.served[row.sequence.root.tenant] += 2.0 if decode else row.count + 2.0 * row.samples
            if row.sequence not in self.began:
                self.began.append(row.sequence)
        self.scheduler.update(batch, self.device.launch(batch), float(self.steps))
        self.scheduler.check_integrity()
        self.steps += 1
        return len(rows)

    def run(self) -> None:
        while self.scheduler.running or len(self.scheduler.waiting):
            assert self.step(), "the engine idles while somebody waits"

    def waits(self, tenant: str) -> bool:
        return self.scheduler.waiting.waiting_of(tenant) > 0


TENANTS = "abc"


@st.composite
def loads(draw: st.DrawFn) -> dict[str, object]:
    """Requests of three tenants by step of arrival, each tenant with its own weight, lengths and rate."""
    arrivals: list[tuple[int, str, int, int, int]] = []
    for tenant in TENANTS:
        tokens, new, rate = draw(st.integers(1, 20)), draw(st.integers(1, 12)), draw(st.sampled_from([1, 1, 3, 10]))
        begins = draw(st.sampled_from([0, 0, 15]))
        for _ in range(draw(st.integers(5, 10)) * rate):
            at = begins + draw(st.integers(0, 30))
            arrivals.append((at, tenant, tokens, new, draw(st.integers(-10, 10))))
    return {
        "arrivals": sorted(arrivals),
        "rows": draw(st.integers(1, 6)),
        "budget": draw(st.sampled_from([4, 16, 64])),
        "weights": {tenant: draw(st.sampled_from([1.0, 1.0, 2.0, 0.5])) for tenant in TENANTS},
    }


def widest_gap(load: dict, *, blind: bool = False) -> tuple[float, float]:
    """Runs a load to its end: by how much of U two tenants that waited all the while differed at most; and U.

    `blind`: every token costs nothing, so nobody is told apart.
    """
    scene = Scene(rows=load["rows"], budget=load["budget"])
    if blind:
        scene.scheduler.counters.input_cost = scene.scheduler.counters.output_cost = 0.0
    weights, pending = load["weights"], list(load["arrivals"])
    longest = max(tokens for _, _, tokens, _, _ in pending)
    capacity = scene.scheduler.cache.pool.capacity
    bound = max(longest, 2.0 * capacity) / min(weights.values())
    since: dict[tuple[str, str], dict[str, float]] = {}
    widest = 0.0
    while pending or scene.scheduler.running or len(scene.scheduler.waiting):
        while pending and pending[0][0] <= scene.steps:
            _, tenant, tokens, new, priority = pending.pop(0)
            scene.add(tenant, tokens, new, weight=weights[tenant], priority=priority)
        before = {tenant: scene.served[tenant] / weights[tenant] for tenant in TENANTS}
        waited = {tenant for tenant in TENANTS if scene.waits(tenant)}
        scene.step()
        for one, other in [(one, other) for one in TENANTS for other in TENANTS if one < other]:
            if not (one in waited and other in waited and scene.waits(one) and scene.waits(other)):
                since.pop((one, other), None)
                continue
            # the deviation over every interval that ends now: its widest began where the running difference was least
            low_high = since.setdefault(
                (one, other), {"low": before[one] - before[other], "high": before[one] - before[other]}
            )
            gap = scene.served[one] / weights[one] - scene.served[other] / weights[other]
            widest = max(widest, gap - low_high["low"], low_high["high"] - gap)
            low_high["low"], low_high["high"] = min(low_high["low"], gap), max(low_high["high"], gap)
    return widest, bound


@settings(max_examples=25, deadline=None)
@given(loads())
def test_tenants_that_wait_differ_by_no_more_than_twice_the_largest_batch(load: dict) -> None:
    """VTC's theorem, over every interval [t1, t2) in which two tenants wait all the while:

    | W_i(t1, t2) / weight_i - W_j(t1, t2) / weight_j | <= 2 U, with U = max(w_p L_input, w_q M) / least weight, M the
    tokens that a batch's rows can come to, w_p = 1 and w_q = 2.
    """
    widest, bound = widest_gap(load)
    assert widest <= 2 * bound


def steady_flood(rows: int = 4) -> dict:
    """One tenant has sent hundreds of long requests before another comes with many of its own."""
    flood = [(0, "a", 4, 12, 0)] * 300
    victim = [(1, "b", 4, 12, 0)] * 60
    return {"arrivals": flood + victim, "rows": rows, "budget": 16, "weights": dict.fromkeys(TENANTS, 1.0)}


def test_without_counters_the_bound_is_broken() -> None:
    widest, bound = widest_gap(steady_flood(), blind=True)
    assert widest > 2 * bound, "the property could not fail"
    widest, bound = widest_gap(steady_flood())
    assert widest <= 2 * bound


@pytest.mark.parametrize("weight", [2.0, 4.0, 0.5])
def test_service_is_by_weight(weight: float) -> None:
    scene = Scene(rows=6, budget=24)
    for _ in range(150):
        scene.add("a", 6, 6, weight=weight)
        scene.add("b", 6, 6)
    while scene.waits("a") and scene.waits("b"):
        scene.step()
    assert scene.served["a"] / scene.served["b"] == pytest.approx(weight, rel=0.15)


def test_long_and_short_requests_are_worth_what_they_cost() -> None:
    scene = Scene(rows=6, budget=24)
    for _ in range(200):
        scene.add("a", 20, 12)
        for _ in range(5):
            scene.add("b", 2, 2)
    while scene.waits("a") and scene.waits("b"):
        scene.step()
    assert scene.served["a"] / scene.served["b"] == pytest.approx(1, rel=0.1)


def test_who_was_away_has_saved_up_nothing() -> None:
    scene = Scene(rows=2)
    scene.add("b")
    scene.run()
    for _ in range(200):
        scene.add("a")
    for _ in range(200):
        scene.step()
    before = dict(scene.served)
    for _ in range(60):
        scene.add("b")
    while scene.waits("b"):
        scene.step()
    got = {tenant: scene.served[tenant] - before[tenant] for tenant in "ab"}
    assert got["b"] / got["a"] == pytest.approx(1, rel=0.1)


def test_one_tenant_alone_is_served_as_it_came() -> None:
    scene = Scene(rows=2)
    sequences = [scene.add("a", tokens, 3) for tokens in (5, 9, 2, 20, 7, 7)]
    scene.run()
    assert scene.began == sequences


def test_a_newcomer_passes_the_line_of_a_tenant_that_has_had_more() -> None:
    scene = Scene(rows=1)
    flood = [scene.add("a") for _ in range(6)]
    scene.step()
    late = scene.add("b")
    scene.run()
    assert scene.began[:2] == [flood[0], late]


def test_higher_priorities_go_first_and_only_among_their_tenants_own() -> None:
    scene = Scene(rows=1)
    low = scene.add("a", priority=-3)
    plain = scene.add("a")
    other = scene.add("b")
    high = scene.add("a", priority=10)
    scene.run()
    mine = [sequence for sequence in scene.began if sequence is not other]
    assert mine == [high, plain, low]
    assert scene.began.index(other) <= 1, "another tenant's priority is nothing to it"


def test_a_low_priority_is_passed_over_for_its_minutes_and_no_longer() -> None:
    scene = Scene(rows=1)
    low = scene.add("a", priority=-1, arrival=0.0)
    early = scene.add("a", arrival=PRIORITY_SECONDS - 1)
    late = scene.add("a", arrival=PRIORITY_SECONDS + 1)
    scene.run()
    assert scene.began == [early, low, late]


def test_an_adapters_rows_go_in_together_within_their_tenants_turns() -> None:
    scene = Scene(rows=1, group=3)
    for _ in range(2):
        for digest in ("x", "y"):
            scene.add("a", digest=digest)
            scene.add("b")
    scene.run()
    mine = [sequence.root.digest for sequence in scene.began if sequence.root.tenant == "a"]
    assert sorted(mine) == ["x", "x", "y", "y"]
    turns = [sequence.root.tenant for sequence in scene.began]
    assert all(turns[at : at + 3].count("a") < 3 for at in range(len(turns) - 2)), "a group is no way past the others"


def test_a_group_stays_together_between_the_turns_of_others() -> None:
    scene = Scene(rows=8, budget=64, group=3)
    for digest in ("x", "y", "x", "y"):
        scene.add("a", digest=digest)
    for _ in range(4):
        scene.add("b")
    scene.step()
    mine = [sequence.root.digest for sequence in scene.began if sequence.root.tenant == "a"]
    assert mine == ["x", "x", "y", "y"]


def test_a_long_prompt_under_way_leaves_the_budget_to_who_has_had_less() -> None:
    scene = Scene(rows=4, budget=4, longest=64)
    scene.add("a", 40, 1)
    scene.step()
    short = scene.add("b", 4, 1)
    scene.step()
    assert short.finished, "its whole input ran in the step after it came"


def test_who_has_had_most_gives_way_when_the_pool_is_full() -> None:
    scene = Scene(rows=4, budget=64, longest=40, slots=60)
    first = scene.add("b", 4, 4)  # the oldest of all never gives way
    for _ in range(2):
        scene.add("a", 10, 30)
    scene.step()
    scene.step()
    late = scene.add("b", 8, 20)
    while not late.finished:
        scene.step()
    assert first.finished
    assert late.preemptions == 0
    assert scene.scheduler.preemptions > 0
    scene.run()


def test_a_full_queue_makes_room_for_a_tenant_that_has_less_in_it() -> None:
    scene = Scene(rows=1, max_waiting=4)
    flood = [scene.add("a") for _ in range(4)]
    with pytest.raises(Overloaded):
        scene.add("a")
    small = scene.add("b")
    scene.step()
    assert [(sequence, type(error)) for sequence, error in scene.failed] == [(flood[-1], Overloaded)]
    scene.add("b")
    with pytest.raises(Overloaded):
        scene.add("b")  # both have two in it
    scene.run()
    assert small.finished == "length"
    assert [sequence for sequence, _ in scene.failed] == [flood[-1]]


def test_a_flood_does_not_displace_its_own_sequences() -> None:
    scene = Scene(rows=1, max_waiting=2)
    flood = [scene.add("a") for _ in range(2)]
    with pytest.raises(Overloaded):
        scene.add("a", weight=9.0)  # its weight has just been raised
    scene.run()
    assert [sequence.finished for sequence in flood] == ["length", "length"]


def test_who_is_next_of_many_equal_tenants_is_told_without_asking_each(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(rows=8, budget=64)
    for number in range(200):
        scene.add(str(number))
    asked = 0
    plain = TenantLines.next_line

    def counted(lines: TenantLines) -> list[Sequence] | None:
        nonlocal asked
        asked += 1
        return plain(lines)

    monkeypatch.setattr(TenantLines, "next_line", counted)
    batch, _ = scene.scheduler.next(0.0)
    assert [chunk.sequence.root.tenant for chunk in batch.chunks] == [str(number) for number in range(8)]
    assert asked < 50


def test_a_full_queue_looks_at_a_few_of_a_flood_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(rows=1, max_waiting=200)
    for _ in range(200):
        scene.add("a")
    looked = 0

    def counted(sequence: Sequence) -> tuple[float, int]:
        nonlocal looked
        looked += 1
        return sequence.arrival, sequence.order

    monkeypatch.setattr(Sequence, "place", property(counted))
    with pytest.raises(Overloaded):
        scene.add("a")
    assert looked == 0
    scene.add("b")
    assert looked < 50


def test_a_full_queue_of_equals_takes_no_more() -> None:
    scene = Scene(rows=1, max_waiting=2)
    scene.add("a")
    scene.add("b")
    with pytest.raises(Overloaded):
        scene.add("b")
    with pytest.raises(Overloaded):
        scene.add("c")


def test_numbers_of_tenants_that_are_gone_are_used_again() -> None:
    counters = VirtualTokenCounters()
    for name in range(1000):
        number = counters.enter(str(name))
        counters.queue(number, 1, 0)
        counters.queue(number, 0, None)
        counters.charge_decodes(np.array([number]), np.array([0]))
        counters.leave(str(name))
        counters.check_integrity(())
    assert len(counters.had) < 16
