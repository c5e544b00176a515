"""What can't start is started ever more slowly; what served, or lived for a while, at once."""

from __future__ import annotations

from softmux.worker.pauses import Pauses


def test_pauses_double_up_to_a_bound_and_begin_again_after_a_steady_life() -> None:
    pauses = Pauses(0.25)
    assert [pauses.after(1.0, served=False) for _ in range(9)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pauses.after(61.0, served=False) == 0.25
    assert pauses.after(60.0, served=False) == 0.5


def test_what_was_ready_keeps_nobody_waiting_for_long() -> None:
    pauses = Pauses(0.25)
    assert [pauses.after(5.0, served=True) for _ in range(6)] == [0.25, 0.5, 1, 1, 1, 1]
    assert [pauses.after(5.0, served=False) for _ in range(3)] == [2, 4, 8]
    assert pauses.after(5.0, served=True) == 1
