from __future__ import annotations

import pytest

from softmux.worker.throughput import Throughput


def test_windows_with_room_say_nothing() -> None:
    measured = Throughput()
    measured.began(100)
    measured.tick(0.0, full=False, done=0)
    measured.began(10)
    measured.tick(1.0, full=False, done=10)
    measured.tick(2.0, full=True, done=20)  # it filled up within this window
    assert measured.rate == 0


def test_bursts_are_carried_by_what_is_done_and_early_ends_by_what_was_begun() -> None:
    bursts, early = Throughput(), Throughput()
    for second in range(60):
        if second % 20 == 0:
            bursts.began(2000)
        bursts.tick(float(second), full=True, done=100.0 * second)
        early.began(300)
        early.tick(float(second), full=True, done=100.0 * second)
    assert 90 < bursts.rate < 170, "twenty seconds' work begins at once"
    assert early.rate == pytest.approx(300)


def test_it_follows_a_change_within_a_minute() -> None:
    measured = Throughput()
    done = 0.0
    for second in range(120):
        done += 100 if second < 60 else 400
        measured.tick(float(second), full=True, done=done)
        if second == 59:
            assert measured.rate == pytest.approx(100)
    assert measured.rate == pytest.approx(400, rel=0.1)


def test_calls_close_together_make_one_window() -> None:
    measured = Throughput()
    for call in range(100):
        measured.tick(call / 20, full=True, done=float(call))
    assert measured.rate == pytest.approx(20, rel=0.1)
