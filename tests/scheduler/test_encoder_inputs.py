"""Rows with an encoder's input: it runs whole, is nobody else's, and is computed anew where a row comes back."""

from __future__ import annotations

import random

import pytest
from test_scheduler import BARE, LEAD, TUNED, Scene, told

from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.simulated_engine import chain, rows_of


def ask(
    scene: Scene, length: int, root: RootKey = BARE, *, lead: list[int] | None = None, trained: bool = False,
    max_tokens: int = 4,
) -> Sequence:  # fmt: skip
    """A source of `length` tokens behind `lead`, and one token for the decoder to begin with."""
    scene.count += 1
    tokens = [*(lead or []), *(3 + (scene.count + i) % 8 for i in range(length)), 10]
    source = (len(lead or []) if trained else 0, len(tokens) - 1)
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    sequence = Sequence(str(scene.count), b"c", root, tokens, sampling, 0.0, source=source)
    scene.scheduler.add(sequence)
    return sequence


def test_a_source_runs_whole_with_the_decoders_first_token_and_leaves_nothing() -> None:
    scene = Scene(budget=24)
    rows = [ask(scene, 15) for _ in range(2)]
    _, ran, _ = scene.step()
    assert told(ran) == [("1", 0, 16, True)], "eight tokens are left: the second is not cut to fit"
    _, ran, _ = scene.step()
    assert told(ran) == [("1", 16, 1, True), ("2", 0, 16, True)]
    scene.run()
    assert all(row.finished == "length" for row in rows)
    assert scene.scheduler.cache.tree.tokens == 0


def test_the_same_source_twice_shares_nothing() -> None:
    scene = Scene(budget=64)
    for _ in range(2):
        scene.count = 0
        ask(scene, 9)
        _, ran, _ = scene.step()
        assert told(ran) == [("1", 0, 10, True)]
        scene.run()


def test_a_decoders_trained_prefix_is_shared_in_front_of_sources() -> None:
    scene = Scene(budget=32)
    scene.tuned.trained, scene.tuned.compiled = True, chain(TUNED, LEAD)
    for _ in range(2):
        ask(scene, 6, TUNED, lead=LEAD, trained=True)
    batch = scene.next()
    assert told(rows_of(batch)) == [("1", 5, 7, True), ("2", 5, 7, True)]
    assert [len(load.slots) for load in batch.loads] == [5], "the second finds the prefix in the tree"
    scene.update(batch, scene.device.launch(batch))
    scene.run()
    assert scene.scheduler.cache.tree.tokens == 5


def test_vectors_in_a_source_are_computed_with_it() -> None:
    scene = Scene(budget=32)
    for _ in range(2):
        ask(scene, 6, TUNED, lead=LEAD)
        batch = scene.next()
        assert [(row.start, row.count) for row in rows_of(batch)] == [(0, 12)]
        assert not batch.saves
        scene.update(batch, scene.device.launch(batch))
        scene.run()


def test_a_row_that_gave_way_brings_its_source_whole_again_and_what_it_said_in_chunks() -> None:
    scene = Scene(slots=40, budget=20, max_rows=3)
    rows = [ask(scene, 9, max_tokens=12) for _ in range(3)]
    first = {row.id: [] for row in rows}
    while scene.scheduler.running or len(scene.scheduler.waiting):
        _, ran, _ = scene.step()
        for row in ran:
            if row.start < 10:
                first[row.sequence.id].append((row.start, row.count))
    assert scene.scheduler.preemptions > 0
    assert max(map(len, first.values())) > 1, "a row came back"
    assert all(start == 0 and count >= 10 for chunks in first.values() for start, count in chunks)
    assert all(row.finished == "length" for row in rows)


@pytest.mark.parametrize("seed", range(20))
def test_a_random_load_of_sources_leaves_nothing(seed: int) -> None:
    draw = random.Random(seed)
    scene = Scene(slots=draw.choice([48, 64, 200]), budget=draw.choice([8, 16, 64]), max_rows=draw.choice([1, 3, 8]))
    scene.tuned.trained, scene.tuned.compiled = True, chain(TUNED, LEAD)
    rows = []
    for _ in range(20):
        if draw.random() < 0.4:
            rows.append(ask(scene, draw.randint(1, 14), TUNED, lead=LEAD, trained=True, max_tokens=draw.randint(1, 9)))
        else:
            rows.append(ask(scene, draw.randint(1, 14), max_tokens=draw.randint(1, 9)))
        if draw.random() < 0.5:
            scene.step()
        if draw.random() < 0.1:
            victim = draw.choice(rows)
            scene.scheduler.abort(b"c", victim.id)
    scene.run()
    assert all(row.finished in ("length", "abort") for row in rows)
    cache = scene.scheduler.cache
    assert cache.tree.tokens in (0, len(LEAD))
    assert cache.pool.free + cache.tree.tokens == cache.pool.capacity
