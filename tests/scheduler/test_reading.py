"""Rows that are read: whole where they must be, out of the tree where they can't share, ended by the reading step."""

from __future__ import annotations

import pytest
from test_scheduler import BARE, LEAD, TUNED, Scene, told

from softmux.errors import ContextTooLong
from softmux.scheduler.radix import RootKey
from softmux.scheduler.reading import Reading
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.simulated_engine import chain, rows_of

ONCE = SamplingParams(max_tokens=1, ignore_eos=True)


def read(scene: Scene, tokens: list[int], reading: Reading, root: RootKey = BARE) -> Sequence:
    scene.count += 1
    sequence = Sequence(str(scene.count), b"c", root, tokens, ONCE, 0.0, reading=reading)
    scene.scheduler.add(sequence)
    return sequence


def text(length: int, first: int = 3) -> list[int]:
    return [3 + (first + i) % 8 for i in range(length)]


def alone(length: int, lead: int = 0, whole_from: int = 0) -> Reading:
    return Reading("head", lead, length, whole_from, alone=True)


def test_a_row_that_stands_alone_runs_whole_and_leaves_nothing() -> None:
    scene = Scene(budget=32)
    rows = [read(scene, text(20), alone(20)) for _ in range(3)]
    free = scene.scheduler.cache.pool.free
    for number in ("1", "2", "3"):  # 12 tokens are left in each step: no row is cut to fit
        _, ran, news = scene.step()
        assert told(ran) == [(number, 0, 20, True)]
        [(_, output)] = news
        assert (output.finish_reason, output.tokens, output.cached_tokens) == ("stop", (), 0)
    assert all(row.finished == "stop" for row in rows)
    assert scene.scheduler.cache.pool.free == free
    assert scene.scheduler.cache.tree.tokens == 0


def test_short_rows_that_stand_alone_share_a_step() -> None:
    scene = Scene(budget=32)
    for _ in range(4):
        read(scene, text(8), alone(8))
    assert [row.count for row in rows_of(scene.next())] == [8, 8, 8, 8]


def test_a_trained_prefix_is_shared_and_all_behind_it_is_not() -> None:
    scene = Scene(budget=32)
    scene.tuned.trained, scene.tuned.compiled = True, chain(TUNED, LEAD)
    for _ in range(2):
        read(scene, LEAD + text(6), alone(11, lead=5, whole_from=5), TUNED)
    batch = scene.next()
    assert told(rows_of(batch)) == [("1", 5, 6, True), ("2", 5, 6, True)]
    assert [len(load.slots) for load in batch.loads] == [5], "the second finds the prefix in the tree"
    assert not batch.saves
    scene.update(batch, scene.device.launch(batch))
    assert scene.scheduler.cache.tree.tokens == 5


def test_vectors_before_a_row_that_stands_alone_are_computed_with_it() -> None:
    scene = Scene(budget=32)
    for _ in range(2):
        read(scene, LEAD + text(6), alone(11, lead=5), TUNED)
        batch = scene.next()
        assert [(row.start, row.count) for row in rows_of(batch)] == [(0, 11)]
        assert not batch.saves, "their keys and values are this row's alone"
        scene.update(batch, scene.device.launch(batch))


def test_a_token_head_on_a_decoder_reads_text_anew_behind_a_shared_prompt() -> None:
    scene = Scene(budget=32)
    for expected in ((0, 11), (5, 6)):
        read(scene, LEAD + text(6), Reading("head", 5, 11, 5), TUNED)
        _, ran, _ = scene.step()
        assert [(row.start, row.count) for row in ran] == [expected]


def test_a_last_token_is_read_behind_whatever_the_cache_has_and_may_come_in_chunks() -> None:
    scene = Scene(budget=8)
    read(scene, text(20), Reading("head", 19, 20, 19))
    assert [[row.count for row in scene.step()[1]] for _ in range(3)] == [[8], [8], [4]]
    read(scene, text(20), Reading("head", 19, 20, 19))
    _, ran, [(_, output)] = scene.step()
    assert [(row.start, row.count) for row in ran] == [(19, 1)]
    assert output.cached_tokens == 19


def test_labels_of_one_prompt_compute_it_once() -> None:
    scene = Scene(budget=32)
    for label in ([3, 4], [3], [5, 6, 7]):
        read(scene, text(10) + label, Reading("likelihood", 10, 10 + len(label), 9))
    assert [(row.start, row.count) for row in rows_of(scene.next())] == [(0, 12), (9, 2), (9, 4)]


def test_a_whole_row_goes_first_once_it_waits_and_beside_rows_that_decode() -> None:
    scene = Scene(budget=24, max_rows=4, slots=200)
    spoken = [scene.add(text(4, i), max_tokens=12) for i in range(3)]
    scene.step()
    read(scene, text(24), alone(24))
    read(scene, text(24, 1), alone(24))
    _, ran, _ = scene.step()
    assert [row.count for row in ran] == [1, 1, 1, 24], "decoding rows take nothing of the first chunk's room"
    scene.run()
    assert all(sequence.finished == "length" for sequence in spoken)


def test_what_can_never_be_read_whole_is_refused() -> None:
    scene = Scene(budget=16, context=64)
    with pytest.raises(ContextTooLong, match="in one step"):
        read(scene, text(17), alone(17))
    read(scene, text(16), alone(16))
    scene = Scene(budget=64, context=20)
    with pytest.raises(ContextTooLong, match="takes 20"):
        read(scene, text(21), alone(21))
    read(scene, text(20), alone(20))  # no token follows: it may fill the context
    scene.run()


def test_a_row_that_waits_to_be_whole_can_be_aborted() -> None:
    scene = Scene(budget=16)
    read(scene, text(10), alone(10))
    waiting = read(scene, text(10), alone(10))
    batch = scene.next()
    assert waiting.row >= 0, "it has its seat already"
    scene.scheduler.abort(b"c", waiting.id)
    scene.update(batch, scene.device.launch(batch))
    assert not scene.scheduler.running
