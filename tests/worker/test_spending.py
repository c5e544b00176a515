"""The engine's time as it is shared out: over a real scheduler, each step of a known length."""

from __future__ import annotations

import pytest

from softmux.engine.engine import StepNews
from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from softmux.worker.canary import CLIENT
from softmux.worker.spending import Spending
from support.simulated_engine import FakeEngine, Shelf

ROWS, SLOTS = 4, 200
Booked = dict[tuple[str, str], float]


class Scene:
    """Steps of as many seconds as they compute tokens, so that each token costs one."""

    def __init__(self) -> None:
        self.shelf = Shelf([])
        self.scheduler = Scheduler(
            slots=SLOTS, max_rows=ROWS, max_step_tokens=16, context_length=100, eos=(2,), shelf=self.shelf
        )
        self.device = FakeEngine(self.scheduler, self.shelf, SLOTS, ROWS)
        self.spending = Spending(ROWS)
        self.seconds = 0.0

    def add(self, tenant: str, account: str, prompt: int, tokens: int, client: bytes = b"c") -> Sequence:
        """Of a prompt that shares nothing with another's."""
        number = len(list(self.scheduler.sequences()))
        sequence = Sequence(
            f"{tenant}-{account}-{number}",
            client,
            RootKey(tenant, None, "f", f"d{number}"),
            [3] * prompt,
            SamplingParams(max_tokens=tokens, ignore_eos=True),
            arrival=0.0,
        )
        sequence.task = account
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> None:
        batch, _ = self.scheduler.next(0.0)
        news = StepNews(batch=batch, seconds=float(batch.tokens))
        self.scheduler.update(batch, self.device.launch(batch), 1.0)
        self.spending.observe(news)
        self.seconds += news.seconds

    def run(self) -> None:
        while self.scheduler.running or len(self.scheduler.waiting):
            self.step()


def told(scene: Scene) -> dict[bytes, Booked]:
    return {
        client: {(tenant, account): pytest.approx(seconds) for tenant, account, seconds in spent.booked}
        for client, spent in scene.spending.told().items()
    }


def test_each_pays_for_the_tokens_it_had_computed() -> None:
    scene = Scene()
    scene.add("a", "mood", prompt=20, tokens=1)
    scene.add("a", "mood", prompt=4, tokens=3)
    scene.add("a", "", prompt=10, tokens=5)
    scene.add("b", "mood", prompt=6, tokens=2, client=b"other")
    scene.run()
    # the last token of each is chosen, and never computed
    assert told(scene) == {
        b"c": {("a", "mood"): 20 + 4 + 2, ("a", ""): 10 + 4},
        b"other": {("b", "mood"): 6 + 1},
    }
    assert scene.seconds == 47
    assert scene.spending.told() == {}


def test_it_is_told_as_it_is_spent_and_rows_change_hands() -> None:
    scene = Scene()
    total = 0.0
    for number in range(30):
        scene.add("a", f"task-{number % 3}", prompt=3 + number % 5, tokens=1 + number % 4)
    while scene.scheduler.running or len(scene.scheduler.waiting):
        scene.step()
        total += sum(seconds for spent in scene.spending.told().values() for _, _, seconds in spent.booked)
    assert total == pytest.approx(scene.seconds)


def test_what_was_aborted_counts_and_the_canary_does_not() -> None:
    scene = Scene()
    left = scene.add("a", "left", prompt=5, tokens=50)
    scene.add("a", "canary", prompt=5, tokens=2, client=CLIENT)
    for _ in range(4):
        scene.step()
    scene.scheduler.abort(left.client, left.id)
    scene.run()
    assert told(scene) == {b"c": {("a", "left"): 5 + 3}}
