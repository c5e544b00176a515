"""Requests that wait for their grammars: taken out in order, without a look at each pair of them."""

from __future__ import annotations

import pytest

from softmux.errors import Overloaded
from softmux.types import Grammar, SamplingParams
from softmux.worker.compiling import Compiling, CompilingRequests
from softmux.worker.messages import Generate

PARAMS = SamplingParams(grammar=Grammar("regex", "a+"))


def one(name: str, client: bytes = b"c", deadline: float | None = None) -> Compiling:
    return Compiling(client, Generate(id=name, tenant="t", tokens=(5,), sampling=PARAMS, deadline=deadline), 10.0)


def names(taken: list[Compiling]) -> list[str]:
    return [each.message.id for each in taken]


def test_those_that_are_ready_late_or_aborted_go_the_others_stay() -> None:
    waiting = CompilingRequests()
    for each in (one("a"), one("b", deadline=5), one("c", b"d"), one("d"), one("e", deadline=50)):
        waiting.wait(each)
    assert names(waiting.late(14.9)) == []
    assert names(waiting.late(15.0)) == ["b"]
    waiting.abort(b"c", "c")  # another client's
    assert len(waiting) == 4
    assert names(waiting.take(lambda each: each.message.id in "ec")) == ["c", "e"]
    waiting.abort(b"c", "a")
    waiting.abort(b"d")
    assert names(waiting.take(lambda _: True)) == ["d"]
    assert len(waiting) == 0


def test_thousands_of_one_grammar_are_taken_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would stall the step: each looked for among all."""
    waiting = CompilingRequests()
    for number in range(4096):
        waiting.wait(one(str(number), deadline=1))
    with pytest.raises(Overloaded):
        waiting.wait(one("one more"))
    compared = 0

    def same(self: Compiling, other: object) -> bool:
        nonlocal compared
        compared += 1
        return self is other

    monkeypatch.setattr(Compiling, "__eq__", same)
    assert len(waiting.take(lambda each: int(each.message.id) % 2 == 0)) == 2048
    assert len(waiting.late(11)) == 2048
    assert compared == 0
