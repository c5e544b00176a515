"""The simulation's checks can fail: each of these bugs, made by hand, is found by one of a few seeds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from softmux.scheduler.batch import Batch, StepOutput
from softmux.scheduler.counters import VirtualTokenCounters
from softmux.scheduler.news import News, PlainTokens
from softmux.scheduler.queue import Line, TenantLines
from softmux.scheduler.radix import Node, RadixTree, RootKey
from softmux.scheduler.rows import RowTable
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.scheduler.slots import SlotPool, Slots
from support.simulated_engine import Shelf
from support.simulation import Simulation

SEEDS = 120

_root, _give, _update, _unseat, _shortened = (
    RadixTree.root, SlotPool.give, Scheduler.update, RowTable.unseat, TenantLines._shortened,
)  # fmt: skip


def root_without_digest(tree: RadixTree, key: RootKey) -> Node:
    return _root(tree, key._replace(digest="any"))


def root_without_tenant(tree: RadixTree, key: RootKey) -> Node:
    return _root(tree, key._replace(tenant="any"))


def give_twice(pool: SlotPool, slots: Slots) -> None:
    _give(pool, slots)
    if len(slots) and pool.free < pool.capacity:
        _give(pool, slots[:1])


def give_all_but_one(pool: SlotPool, slots: Slots) -> None:
    _give(pool, slots[:-1])


def hold_nothing(_tree: RadixTree, _node: Node) -> None: ...


def forget_what_was_generated(table: RowTable, sequence: Sequence) -> None:
    _unseat(table, sequence)
    sequence.said = sequence.said[:-1]


def tell_plain_tokens_twice(scheduler: Scheduler, batch: Batch, output: StepOutput, now: float) -> News:
    news = _update(scheduler, batch, output, now)
    one = news.plain
    both = [np.concatenate([column, column]) for column in (one.sequences, one.numbers, one.clients, one.tokens)]
    return News(news.outputs, PlainTokens(*both))


def tell_the_next_rows_token(scheduler: Scheduler, batch: Batch, output: StepOutput, now: float) -> News:
    news = _update(scheduler, batch, output, now)
    one = news.plain
    return News(news.outputs, PlainTokens(one.sequences, one.numbers, one.clients, np.roll(one.tokens, 1)))


def leave_parked(_scheduler: Scheduler, _adapter: RootKey) -> None: ...


def match_one_too_many(
    tree: RadixTree,
    start: Node,
    tokens: list[int],
    begin: int,
    end: int,
    *,
    back: bool = False,
    _match: Callable = RadixTree.match,
) -> tuple[Node, list[int]]:
    """The last token of what is looked for is taken for whatever stands there."""
    node, slots = _match(tree, start, tokens, begin, end, back=back)
    at = begin + len(slots)
    if at == end - 1 and node.children:
        wrong = next(iter(node.children))
        return _match(tree, start, [*tokens[:at], wrong, *tokens[end:]], begin, end)
    return node, slots


def never_release(_shelf: Shelf, _adapter: RootKey) -> None: ...


def forget_a_line(lines: TenantLines, root: RootKey, line: Line) -> None:
    """The line's next is not offered when its first leaves, whether for a row or for good."""
    offer, lines._offer = lines._offer, lambda root: None  # type: ignore[method-assign]
    try:
        _shortened(lines, root, line)
    finally:
        lines._offer = offer  # type: ignore[method-assign]


def count_nobody_out(_counters: VirtualTokenCounters, _tenant: str) -> None: ...


BUGS = {
    "the digest is no part of a root": (RadixTree, "root", root_without_digest),
    "the tenant is no part of a root": (RadixTree, "root", root_without_tenant),
    "a slot is freed twice": (SlotPool, "give", give_twice),
    "a slot is never freed": (SlotPool, "give", give_all_but_one),
    "a reference is not counted": (RadixTree, "lock", hold_nothing),
    "a reference is not given up": (RadixTree, "unlock", hold_nothing),
    "a prefix matches beyond what is equal": (RadixTree, "match", match_one_too_many),
    "a preempted sequence forgets its last token": (RowTable, "unseat", forget_what_was_generated),
    "tokens are told twice": (Scheduler, "update", tell_plain_tokens_twice),
    "tokens are told to the wrong sequence": (Scheduler, "update", tell_the_next_rows_token),
    "an adapter's coming is not heard": (Scheduler, "adapter_arrived", leave_parked),
    "an adapter is held for ever": (Shelf, "release", never_release),
    "a line is forgotten": (TenantLines, "_shortened", forget_a_line),
    "a tenant never leaves": (VirtualTokenCounters, "leave", count_nobody_out),
}


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_is_found_by_some_seed(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, wrong = BUGS[bug]
    monkeypatch.setattr(owner, name, wrong)
    for seed in range(SEEDS):
        try:
            Simulation(seed, seed % 2).run()
        except (AssertionError, RuntimeError, KeyError, IndexError, ValueError):
            return
    pytest.fail(f"no seed of {SEEDS} found it")
