from __future__ import annotations

from contextlib import ExitStack
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from softmux.errors import EngineDown
from softmux.routing.fleet import Fleet
from softmux.routing.policies import WarmFirst

NAMES = st.sampled_from(["r1", "r2", "r3"])


class FleetMachine(RuleBasedStateMachine):
    """A fleet against a plain account of it: requests begin, end and fail, replicas join, drain and are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.fleet = Fleet(WarmFirst(Random(0), free=2, warm_keys=2))
        self.running: list[tuple[ExitStack, str, int]] = []
        self.lives = dict[str, int]()  # of those that are there; each life has a number
        self.leaving = set[str]()
        self.begun = 0

    @rule(name=NAMES)
    def join(self, name: str) -> None:
        self.fleet.join(name)
        self.begun += 1
        self.lives[name] = self.begun
        self.leaving.discard(name)

    @rule(name=NAMES)
    def drain(self, name: str) -> None:
        self.fleet.drain(name)
        if name in self.lives:
            self.leaving.add(name)

    @rule(name=NAMES)
    def lost(self, name: str) -> None:
        self.fleet.lost(name)
        self.lives.pop(name, None)
        self.leaving.discard(name)

    @rule(key=st.sampled_from([None, "a", "b", "c"]), failed=st.sets(NAMES, max_size=1))
    def send(self, key: str | None, failed: set[str]) -> None:
        stack = ExitStack()
        possible = self.lives.keys() - self.leaving - failed
        if not possible:
            with pytest.raises(EngineDown, match="try again"):
                stack.enter_context(self.fleet.sending(key, failed))
            return
        chosen = stack.enter_context(self.fleet.sending(key, failed))
        assert chosen in possible
        self.running.append((stack, chosen, self.lives[chosen]))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        stack, _, _ = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        stack.close()

    @invariant()
    def counts_are_right(self) -> None:
        for name in [name for name in self.leaving if not self._count(name)]:
            self.leaving.discard(name)
            del self.lives[name]
        assert self.fleet.loads == {name: self._count(name) for name in self.lives}
        self.fleet.check_integrity()

    def _count(self, name: str) -> int:
        return sum(chosen == name and life == self.lives[name] for _, chosen, life in self.running)


FleetMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestFleet = FleetMachine.TestCase
