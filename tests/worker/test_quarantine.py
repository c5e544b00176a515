"""The book of who felled workers: two deaths convict a request, its neighbours are cleared."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softmux.marks import content_mark, version_mark
from softmux.recorder import COMPILING, LOADING, SERVING, FlightRecorder, Running
from softmux.types import SamplingParams
from softmux.worker.quarantine import Quarantine, Verdicts

POISON, GOOD, OTHER = 11, 12, 13
V, W = version_mark("acme", "sha256:v"), version_mark("acme", "sha256:w")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def running(*contents: int, versions: tuple[int, ...] = ()) -> Running:
    return Running(frozenset(contents), frozenset(versions))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book(clock: Clock) -> Quarantine:
    return Quarantine(60.0, 3, clock)


def test_the_second_death_convicts_and_neighbours_are_cleared(book: Quarantine) -> None:
    assert book.died(running(POISON, GOOD, versions=(V,)))
    assert book.verdicts() == Verdicts(suspects=frozenset({POISON, GOOD, V}))
    assert book.cleared(GOOD, V)
    assert not book.cleared(GOOD, V)
    book.died(running(POISON, OTHER, versions=(V,)))
    assert book.verdicts() == Verdicts(requests=frozenset({POISON}), suspects=frozenset({OTHER, V}))


def test_a_version_whose_every_request_fells_is_convicted_by_the_third_death(book: Quarantine) -> None:
    for content in (1, 2):
        book.died(running(content, versions=(V,)))
        assert not book.verdicts().felling
    book.died(running(3, versions=(V, W)))
    assert book.verdicts() == Verdicts(felling=frozenset({V}), suspects=frozenset({1, 2, 3, W}))
    assert book.release(V)
    assert not book.verdicts().felling


def test_suspicion_and_conviction_expire_but_not_for_numbers_that_are_not_finite(
    book: Quarantine, clock: Clock
) -> None:
    book.died(running(POISON, GOOD))
    book.died(running(POISON))
    assert [book.not_finite(V) for _ in range(3)] == [False, False, True]
    book.not_finite(W)
    clock.now = 61.0
    assert book.expire()
    assert book.verdicts() == Verdicts(not_finite=frozenset({V}))
    assert not book.expire()
    assert book.release(V)
    assert book.verdicts() == Verdicts()


def test_of_several_suspects_in_one_step_none_is_convicted(book: Quarantine) -> None:
    """They were sent before it was known that they were: only alone does one show what it does."""
    for _ in range(3):
        book.died(running(POISON, GOOD))
    assert book.verdicts() == Verdicts(suspects=frozenset({POISON, GOOD}))
    book.died(running(POISON, OTHER))
    assert book.verdicts() == Verdicts(requests=frozenset({POISON}), suspects=frozenset({GOOD, OTHER}))


def test_kills_from_without_convict_late(book: Quarantine) -> None:
    """Sixteen clients send the same prompts through twenty kills: some wait for their turn when the next comes."""
    for kill in range(20):
        waiting = book.verdicts().suspects
        prompts = frozenset(range(1, 17))
        turn = min(waiting, default=0)
        book.died(Running(prompts - waiting | ({turn} if turn else set()), frozenset()), killed=True)
        for ended in sorted(waiting)[kill % 3 :]:  # the rest had their turn before the next kill
            book.cleared(ended, 0)
    assert not book.verdicts().requests
    for _ in range(4):
        book.died(running(POISON), killed=True)  # the kernel ends what eats its memory
    assert POISON in book.verdicts().requests


def test_what_a_reader_does_to_a_version_is_the_readers_and_a_release_is_for_all(book: Quarantine) -> None:
    owners, readers = version_mark("acme", "sha256:v"), version_mark("reader", "sha256:v", "acme")
    assert owners == V != readers
    assert version_mark("acme", "sha256:v", "acme") == owners
    for _ in range(3):
        book.died(running(versions=(readers,)))
        book.not_finite(readers)
    book.not_finite(W)
    assert book.verdicts() == Verdicts(felling=frozenset({readers}), not_finite=frozenset({readers})), (
        "and not the owner's"
    )
    assert book.release(owners)
    assert book.verdicts() == Verdicts()


def test_a_death_between_steps_blames_nobody(book: Quarantine) -> None:
    assert not book.died(running())
    assert book.verdicts() == Verdicts()


@given(st.lists(st.sets(st.integers(1, 10_000), max_size=64), max_size=150))
def test_the_book_is_bounded(deaths: list[set[int]]) -> None:
    book = Quarantine(60.0, 3, Clock())
    for contents in deaths:
        book.died(running(*contents))
    kept = book.verdicts()
    assert len(kept.requests) + len(kept.suspects) <= 4096


def test_marks_name_content() -> None:
    greedy = SamplingParams()
    mark = content_mark("acme", "sha256:a", (1, 2, 3), greedy)
    assert mark == content_mark("acme", "sha256:a", (1, 2, 3), SamplingParams())
    others = {
        content_mark("other", "sha256:a", (1, 2, 3), greedy),
        content_mark("acme", "sha256:b", (1, 2, 3), greedy),
        content_mark("acme", None, (1, 2, 3), greedy),
        content_mark("acme", "sha256:a", (1, 2, 3, 4), greedy),
        content_mark("acme", "sha256:a", (1, 2, 3), SamplingParams(max_tokens=5)),
        content_mark("acme", "sha256:a", (1, 2, 3), ("token", 0)),
    }
    assert len(others | {mark}) == 7
    assert version_mark("acme", None) == 0
    assert version_mark("acme", "sha256:a") not in (0, version_mark("acme", "sha256:b"))


def test_a_recorder_tells_whose_rows_are_in_the_steps(tmp_path: Path) -> None:
    reader = FlightRecorder(4, tmp_path / "recorder")
    writer = FlightRecorder(4, tmp_path / "recorder")
    assert reader.phase == LOADING
    writer.serve()
    assert (reader.phase, reader.beats) == (SERVING, 1)
    writer.compiling()
    assert reader.phase == COMPILING
    writer.compiled()
    assert (reader.phase, reader.beats) == (SERVING, 2)
    writer.step(np.array([1, 2, 3, 4]), np.array([V, V, W, 0]))
    assert reader.running() == running(1, 2, 3, 4, versions=(V, W))
    writer.step(np.array([1, 5]), np.array([V, 0]))  # launched while the one before runs
    assert reader.running() == running(1, 2, 3, 4, 5, versions=(V, W))
    writer.landed(idle=False)
    assert reader.running() == running(1, 5, versions=(V,))
    writer.landed(idle=True)
    assert reader.running() == running()
    reader.clear()
    assert writer.phase == LOADING
