"""The scheduler, one scene at a time."""

from __future__ import annotations

import numpy as np
import pytest

from softmux.errors import ContextTooLong, InternalError, Overloaded
from softmux.scheduler.batch import Batch, StepOutput
from softmux.scheduler.radix import RootKey
from softmux.scheduler.scheduler import Scheduler
from softmux.scheduler.sequence import Sequence
from softmux.types import Output, SamplingParams
from support.simulated_engine import Adapter, FakeEngine, Row, Shelf, chain, rows_of

BARE = RootKey("a", None, "f", "d")
TUNED = RootKey("a", "x", "f", "d")
SLOW = RootKey("a", "slow", "f", "d")
LOST = RootKey("a", "lost", "f", "d")
LEAD = [-1, -2, -3, -4, -5]


class Scene:
    """A scheduler over slots that remember what was written to them."""

    def __init__(
        self, *, slots: int = 64, max_rows: int = 8, budget: int = 32, context: int = 64, max_waiting: int = 64
    ) -> None:
        tuned = Adapter(TUNED, 5, trained=False, delay=0)
        slow = Adapter(SLOW, 5, trained=False, delay=3)
        lost = Adapter(LOST, 5, trained=False, delay=0, fails=True)
        self.tuned = tuned
        self.shelf = Shelf([tuned, slow, lost])
        self.shelf.there.add(TUNED)
        self.scheduler = Scheduler(
            slots=slots,
            max_rows=max_rows,
            max_step_tokens=budget,
            context_length=context,
            eos=(2,),
            shelf=self.shelf,
            max_waiting=max_waiting,
        )
        self.device = FakeEngine(self.scheduler, self.shelf, slots, max_rows)
        self.count = 0

    def add(self, tokens: list[int], root: RootKey = BARE, **sampling: object) -> Sequence:
        self.count += 1
        chosen = SamplingParams(**({"max_tokens": 4, "ignore_eos": True} | sampling))  # type: ignore[arg-type]
        sequence = Sequence(str(self.count), b"c", root, tokens, chosen, arrival=0.0)
        self.scheduler.add(sequence)
        return sequence

    def next(self) -> Batch:
        for adapter in self.shelf.arrivals():
            self.scheduler.adapter_arrived(adapter)
        batch, failed = self.scheduler.next(0.0)
        assert not failed
        return batch

    def update(self, batch: Batch, output: StepOutput) -> list[tuple[Sequence, Output]]:
        news = list(self.scheduler.update(batch, output, 1.0).each())
        self.scheduler.check_integrity()
        return news

    def step(self) -> tuple[Batch, list[Row], list[tuple[Sequence, Output]]]:
        batch = self.next()
        rows = rows_of(batch)
        return batch, rows, self.update(batch, self.device.launch(batch))

    def run(self) -> None:
        while self.scheduler.running or len(self.scheduler.waiting):
            self.step()


def told(rows: list[Row]) -> list[tuple[str, int, int, bool]]:
    return [(row.sequence.id, row.start, row.count, row.samples) for row in rows]


def test_cold_rows_of_one_adapter_share_its_prompt_within_the_step_that_computes_it() -> None:
    scene = Scene()
    for text in ([3, 4], [3, 5], [6]):
        scene.add(LEAD + text, TUNED)
    batch = scene.next()
    assert told(rows_of(batch)) == [("1", 0, 7, True), ("2", 6, 1, True), ("3", 5, 1, True)]
    assert [len(save.slots) for save in batch.saves] == [5]
    news = scene.update(batch, scene.device.launch(batch))
    assert [output.cached_tokens for _, output in news] == [0, 6, 5]


def test_samples_of_one_prompt_compute_it_once_and_its_last_token_each() -> None:
    scene = Scene()
    for _ in range(4):
        scene.add([3, 4, 5, 6, 7])
    assert told(rows_of(scene.next())) == [("1", 0, 5, True), *((str(i), 4, 1, True) for i in (2, 3, 4))]


def test_a_prompt_of_virtual_tokens_alone_runs_and_then_recomputes_only_its_last() -> None:
    scene = Scene()
    scene.add(list(LEAD), TUNED)
    scene.add(list(LEAD), TUNED)
    _, rows, news = scene.step()
    assert told(rows) == [("1", 0, 5, True), ("2", 4, 1, True)]
    assert [output.cached_tokens for _, output in news] == [0, 4]
    scene.run()


def test_kept_prefix_kv_is_copied_and_only_where_the_tree_has_lost_it() -> None:
    scene = Scene()
    scene.add([*LEAD, 3], TUNED)
    scene.run()
    assert scene.tuned.compiled is not None
    scene.scheduler.cache.pool.give(scene.scheduler.cache.tree.evict(64))
    scene.add([*LEAD, 4], TUNED)
    scene.add([*LEAD, 5], TUNED)
    batch = scene.next()
    assert [(load.start, len(load.slots)) for load in batch.loads] == [(0, 5)]
    assert told(rows_of(batch)) == [("2", 5, 1, True), ("3", 5, 1, True)]
    scene.update(batch, scene.device.launch(batch))
    scene.run()


def test_a_lead_that_an_aborted_sequence_began_is_taken_up_and_kept_whole() -> None:
    scene = Scene(budget=8, max_rows=2)
    scene.scheduler.max_step_tokens = 3
    scene.add([*LEAD, 3], TUNED)
    assert told(scene.step()[1]) == [("1", 0, 3, False)]
    scene.scheduler.abort(b"c", "1")
    scene.add([*LEAD, 4], TUNED)
    batch, rows, _ = scene.step()
    assert told(rows) == [("2", 3, 3, True)]
    assert [len(save.slots) for save in batch.saves] == [5]


def test_a_copy_is_in_the_batch_even_if_its_row_finds_no_room() -> None:
    """The tree says that the copied tokens are there, so the engine must run a batch that has copies and no rows."""
    scene = Scene(slots=10, context=10, max_rows=2)
    scene.scheduler.max_step_tokens = 2
    sequence = scene.add([*LEAD, 6], TUNED, max_tokens=1)
    assert told(scene.step()[1]) == [("1", 0, 2, False)]
    scene.tuned.compiled = chain(TUNED, LEAD)  # kept meanwhile by another's step
    taken = scene.scheduler.cache.pool.take(5)
    batch = scene.next()
    assert [(load.start, len(load.slots)) for load in batch.loads] == [(2, 3)]
    assert len(batch) == 0
    scene.device.launch(batch)
    scene.scheduler.cache.pool.give(taken)
    scene.run()
    assert sequence.finished == "length"


def test_a_prompt_of_the_whole_context_runs_and_one_token_more_is_refused() -> None:
    scene = Scene(slots=16, context=16)
    with pytest.raises(ContextTooLong, match=r"^This model's maximum context length is 16 tokens .* need 17:"):
        scene.add([3] * 13)
    assert not list(scene.scheduler.sequences())
    whole = scene.add([3] * 12)
    only = scene.add([4] * 15, max_tokens=1)
    scene.run()
    assert (whole.finished, whole.generated) == ("length", 4)
    assert (only.finished, only.generated) == ("length", 1)


def test_a_full_queue_and_a_name_twice_are_refused() -> None:
    scene = Scene(max_waiting=2)
    scene.add([3])
    scene.count = 0
    with pytest.raises(InternalError, match="already running"):
        scene.add([3])
    scene.add([3])
    with pytest.raises(Overloaded, match="2 sequences are waiting"):
        scene.add([3])


def test_the_next_step_is_built_on_a_token_not_yet_known_and_none_beyond_the_last() -> None:
    scene = Scene()
    scene.add([3, 4], max_tokens=2)
    first = scene.next()
    output = scene.device.launch(first)
    second = scene.next()
    assert [(row.start, row.count, row.future) for row in rows_of(second)] == [(2, 1, True)]
    after = scene.device.launch(second)
    assert len(scene.next()) == 0
    assert [out.finish_reason for _, out in scene.update(first, output)] == [None]
    assert [out.finish_reason for _, out in scene.update(second, after)] == ["length"]
    assert not scene.scheduler.running


def test_aborted_in_flight_its_slots_come_back_when_the_step_has_ended() -> None:
    scene = Scene()
    sequence = scene.add([3, 4, 5])
    batch = scene.next()
    output = scene.device.launch(batch)
    scene.scheduler.abort(b"c", sequence.id)
    scene.scheduler.abort(b"c", sequence.id)
    assert scene.scheduler.running == [sequence]
    scene.scheduler.check_integrity()
    assert scene.update(batch, output) == []
    assert not scene.scheduler.running
    assert scene.scheduler.cache.pool.free + scene.scheduler.cache.tree.evictable == 64


def test_a_failed_step_ends_its_rows_once_and_the_others_start_again() -> None:
    scene = Scene(max_rows=2)
    ended = scene.add([3, 4], max_tokens=3)
    kept = scene.add([5, 6, 7], max_tokens=3, presence_penalty=0.5)  # its penalty keeps it out of the step in flight
    first = scene.next()
    output = scene.device.launch(first)
    second = scene.next()
    assert [row.sequence for row in rows_of(second)] == [ended]
    scene.scheduler.abort(b"c", ended.id)
    scene.update(first, output)
    assert scene.scheduler.step_failed(second) == []
    scene.scheduler.check_integrity()
    assert scene.scheduler.cache.tree.tokens == 0
    scene.run()
    assert (kept.finished, kept.generated) == ("length", 3)


def test_the_oldest_takes_the_room_of_the_youngest() -> None:
    scene = Scene(slots=20, context=16)
    old = scene.add([3, 4, 5], max_tokens=12)
    young = scene.add([6, 7, 8], max_tokens=12)
    scene.run()
    assert old.preemptions == 0
    assert young.preemptions > 0
    assert (old.generated, young.generated) == (12, 12)


def test_a_late_adapter_holds_up_nobody_and_a_lost_one_only_its_own() -> None:
    scene = Scene()
    late = scene.add([*LEAD, 3], SLOW)
    lost = [scene.add([*LEAD, 3], LOST), scene.add([*LEAD, 4], LOST)]
    ready = scene.add([4])
    assert [row.sequence for row in rows_of(scene.next())] == [ready]
    for adapter in scene.shelf.arrivals():
        scene.scheduler.adapter_arrived(adapter)
    _, failed = scene.scheduler.next(0.0)
    assert [sequence for sequence, _ in failed] == lost
    assert late.finished is None
    assert SLOW in scene.scheduler.waiting


def test_decodes_go_before_prefill_and_prefill_gets_what_is_left() -> None:
    scene = Scene(max_rows=4)
    scene.scheduler.max_step_tokens = 6
    scene.add([3, 4], max_tokens=8)
    scene.add([5, 6], max_tokens=8)
    scene.step()
    scene.add([7] * 20, max_tokens=1)
    for start in range(0, 20, 4):
        _, rows, _ = scene.step()
        assert [(row.count, row.start) for row in rows if row.sequence.id == "3"] == [(4, start)]
        assert [row.count for row in rows[:2]] == [1, 1]


def test_the_end_token_is_not_part_of_the_text_and_the_first_news_alone_tells_of_the_cache() -> None:
    scene = Scene()
    scene.add([3, 4, 5], max_tokens=1)
    scene.run()
    sequence = scene.add([3, 4, 6], ignore_eos=False, max_tokens=5)
    batch = scene.next()
    news = scene.update(batch, StepOutput(np.array([7])))
    scene.device.launch(batch)
    batch = scene.next()
    news += scene.update(batch, StepOutput(np.array([2])))
    assert [(out.tokens, out.finish_reason, out.cached_tokens) for _, out in news] == [((7,), None, 2), ((), "stop", 0)]
    assert sequence.tokens == [3, 4, 6, 7]


def test_an_end_token_before_min_tokens_does_not_end_and_one_asked_to_be_ignored_is_text() -> None:
    scene = Scene()
    early = scene.add([3], ignore_eos=False, min_tokens=1)
    ignoring = scene.add([4])
    batch = scene.next()
    news = scene.update(batch, StepOutput(np.array([2, 2])))
    assert [(out.tokens, out.finish_reason) for _, out in news] == [((2,), None), ((2,), None)]
    assert (early.finished, ignoring.finished) == (None, None)
