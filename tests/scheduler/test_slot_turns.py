"""Adapters that need a slot to run in, and fewer slots than adapters: who waits, who passes, and that none starves."""

from __future__ import annotations

import pytest

from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.simulated_engine import Adapter, FakeEngine, Shelf, rows_of

BARE = RootKey("a", None, "f", "d")


def lora(number: int) -> RootKey:
    return RootKey("a", f"lora-{number}", "f", "d")


class Scene:
    """Adapters 0 to 4 need a slot, and all are at hand."""

    def __init__(self, slots: int, max_rows: int = 8) -> None:
        adapters = [Adapter(lora(number), 0, trained=False, delay=0, delta=True) for number in range(5)]
        self.shelf = Shelf(adapters, delta_slots=slots)
        self.shelf.there.update(adapter.key for adapter in adapters)
        self.scheduler = Scheduler(
            slots=400, max_rows=max_rows, max_step_tokens=64, context_length=64, eos=(2,), shelf=self.shelf, group=1
        )
        self.device = FakeEngine(self.scheduler, self.shelf, 400, max_rows)
        self.count = 0

    def add(self, root: RootKey, max_tokens: int = 4) -> Sequence:
        self.count += 1
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        sequence = Sequence(str(self.count), b"c", root, [5, self.count % 9 + 3], sampling, arrival=0.0)
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> set[RootKey]:
        """The adapters that had rows in it."""
        batch, failed = self.scheduler.next(0.0)
        assert not failed
        roots = {row.sequence.root for row in rows_of(batch)}
        list(self.scheduler.update(batch, self.device.launch(batch), 0.0).each())
        self.scheduler.check_integrity()
        return roots


def test_rows_without_a_slot_wait_and_others_pass() -> None:
    scene = Scene(slots=2)
    first, second, third = (scene.add(lora(number)) for number in range(3))
    bare, more = scene.add(BARE), scene.add(lora(0))
    assert scene.step() == {lora(0), lora(1), BARE}
    assert third.row < 0
    assert more.row >= 0, "an adapter that has its slot takes rows behind those who wait"
    assert bare.row >= 0
    while not (first.finished and second.finished and more.finished):
        assert lora(2) not in scene.step() or first.finished or second.finished
    assert lora(2) in scene.step() or third.finished


def test_slots_are_given_in_the_order_of_coming() -> None:
    scene = Scene(slots=1)
    waiting = [scene.add(lora(number), max_tokens=3) for number in (3, 0, 4, 1, 2)]
    began: list[RootKey] = []
    while not all(sequence.finished for sequence in waiting):
        began += [root for root in scene.step() if root not in began]
    assert began == [lora(number) for number in (3, 0, 4, 1, 2)]


@pytest.mark.timeout(20)
def test_an_adapter_that_is_let_go_while_it_waits_for_a_slot_holds_up_no_step() -> None:
    """A slot comes free, and the adapter whose turn it is has to be read again first."""
    scene = Scene(slots=1)
    running, waiting = scene.add(lora(0), max_tokens=2), scene.add(lora(1))
    while not running.finished:
        scene.step()
    scene.shelf.there.discard(lora(1))
    assert scene.step() == set(), "it can't run yet, and the step says so"
    for key in scene.shelf.arrivals():
        scene.scheduler.adapter_arrived(key)
    while not waiting.finished:
        assert scene.step() == {lora(1)}


def test_a_busy_adapter_gives_way_to_one_that_waits() -> None:
    scene = Scene(slots=1, max_rows=2)
    scene.add(lora(0), max_tokens=6)
    scene.step()
    patient = scene.add(lora(1))
    for _ in range(600):
        if len(scene.scheduler.waiting) < 3:
            scene.add(lora(0), max_tokens=6)
        scene.step()
        if patient.finished:
            break
    assert patient.finished == "length"


def test_one_that_waits_for_a_slot_and_goes_away_holds_up_nobody() -> None:
    scene = Scene(slots=1)
    running, leaving, last = scene.add(lora(0)), scene.add(lora(1)), scene.add(lora(2))
    scene.step()
    scene.scheduler.abort(b"c", leaving.id)
    for _ in range(12):
        scene.step()
    assert running.finished == last.finished == "length"
