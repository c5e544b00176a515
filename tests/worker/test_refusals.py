from __future__ import annotations

from softmux.worker.refusals import Refusals


def test_all_but_one_may_stay_down() -> None:
    refusals = Refusals(3)
    assert refusals.bearable(0)
    assert refusals.bearable(0)  # tried again in vain
    assert refusals.bearable(2)
    refusals.over(0)
    assert refusals.bearable(1)
    assert not refusals.bearable(0)


def test_without_the_only_one_there_is_nothing() -> None:
    assert not Refusals(1).bearable(0)
