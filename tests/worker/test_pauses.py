"""What dies at once is started ever more slowly; what lived for a while, at once."""

from __future__ import annotations

from softmux.worker.pauses import Pauses


def test_pauses_double_up_to_a_bound_and_begin_again_after_a_steady_life() -> None:
    pauses = Pauses(0.25)
    assert [pauses.after(1.0) for _ in range(9)] == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pauses.after(61.0) == 0.25
    assert pauses.after(60.0) == 0.5
