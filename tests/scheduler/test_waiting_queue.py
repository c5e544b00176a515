"""Who is next: oldest line first, neighbours together, parked lines passed over, nobody forgotten."""

from __future__ import annotations

import random

from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.queue import WaitingQueue
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams

ROOTS = [RootKey(tenant, digest, "f", "d") for tenant in "ab" for digest in (None, "x", "y")]


def waiting(order: int, root: RootKey) -> Sequence:
    return Sequence(str(order), b"", root, [1], SamplingParams(), arrival=0.0, order=order)


def make_queue() -> WaitingQueue:
    """Of tenants that have had nothing yet."""
    counters = VirtualTokenCounters()
    for tenant in "ab":
        counters.enter(tenant)
    return WaitingQueue(counters)


def test_lines_are_served_by_the_arrival_of_their_first() -> None:
    queue = make_queue()
    for order, root in enumerate([ROOTS[1], ROOTS[0], ROOTS[1], ROOTS[2]]):
        queue.push(waiting(order, root))
    taken = []
    while line := queue.next_line():
        taken.append(queue.pop(line[0].root).order)
    assert taken == [0, 1, 2, 3]
    assert len(queue) == 0


def test_a_preempted_sequence_is_next_again() -> None:
    queue = make_queue()
    for order in (5, 6, 7):
        queue.push(waiting(order, ROOTS[order % 2]))
    queue.push(waiting(4, ROOTS[1]))
    queue.push(waiting(2, ROOTS[1]))
    line = queue.next_line()
    assert line is not None
    assert [s.order for s in line] == [2, 4, 5, 7]


def test_a_parked_line_waits_and_then_takes_its_old_place() -> None:
    queue = make_queue()
    old, young = waiting(0, ROOTS[1]), waiting(1, ROOTS[0])
    queue.push(old)
    queue.push(young)
    queue.park(old.root)
    line = queue.next_line()
    assert line is not None
    assert line[0] is young
    queue.unpark(old.root)
    line = queue.next_line()
    assert line is not None
    assert line[0] is old


def test_a_line_that_empties_while_parked_is_not_parked_when_it_fills_again() -> None:
    queue = make_queue()
    first, second = waiting(0, ROOTS[1]), waiting(1, ROOTS[1])
    queue.push(first)
    queue.park(first.root)
    assert queue.remove(first)
    assert first.root not in queue
    assert queue.next_line() is None
    queue.push(second)
    line = queue.next_line()
    assert line is not None
    assert line[0] is second


def test_any_order_of_calls_serves_the_oldest_line_that_is_not_parked() -> None:
    for seed in range(60):
        draw, queue = random.Random(seed), make_queue()
        living: list[Sequence] = []
        parked: set[RootKey] = set()
        for order in range(200):
            what = draw.random()
            if what < 0.45:
                # as if preempted, now and then: an order that is older than others'
                sequence = waiting(order * 10 - draw.choice([0, 0, 0, 55, 155]) + 1, draw.choice(ROOTS))
                if all(s.order != sequence.order for s in living):
                    queue.push(sequence)
                    living.append(sequence)
            elif what < 0.6 and living:
                gone = draw.choice(living)
                assert queue.remove(gone)
                assert not queue.remove(gone)
                living.remove(gone)
            elif what < 0.7 and living:
                root = draw.choice(living).root
                queue.park(root)
                parked.add(root)
            elif what < 0.8:
                root = draw.choice(ROOTS)
                queue.unpark(root)
                parked.discard(root)
            else:
                line = queue.next_line()
                if line is not None:
                    living.remove(queue.pop(line[0].root))
            parked &= {s.root for s in living}
            line = queue.next_line()
            open_ones = [s for s in living if s.root not in parked]
            assert (line[0] if line else None) is min(open_ones, key=lambda s: s.order, default=None)
            assert len(queue) == len(living)
            assert sorted(s.order for s in queue) == sorted(s.order for s in living)
            assert all((root in queue) == any(s.root == root for s in living) for root in ROOTS)
