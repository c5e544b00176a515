"""Prompts that requests come back to stay, whatever else each request leaves, and however many rows it is."""

from __future__ import annotations

import random

import numpy as np
import pytest
from test_scheduler import LEAD, TUNED, Scene

from softmux.scheduler.batch import StepOutput
from softmux.scheduler.radix import RootKey
from softmux.scheduler.reading import Reading
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.simulated_engine import Adapter

TASKS, LEARNED, TEXT = 60, 5, 10
MANY = [Adapter(RootKey("a", f"task {number}", "f", "d"), LEARNED, trained=False, delay=0) for number in range(TASKS)]


def share_found(samples: int, labels: int) -> float:
    """Of requests for tasks by chance, each of one text that never comes again, how many find their prompt. The pool
    has room for all prompts twice over, and for a fifth of the texts that come between two uses of one."""
    scene = Scene(slots=2 * TASKS * LEARNED, max_rows=4, budget=64)
    scene.shelf.adapters |= {adapter.key: adapter for adapter in MANY}
    scene.shelf.there |= {adapter.key for adapter in MANY}
    draw, found, requests = random.Random(5), 0, 500
    for request in range(requests):
        root = draw.choice(MANY).key
        found += request >= requests // 2 and scene.scheduler.cache.tree.begins(root, -1)
        text = [-1 - i for i in range(LEARNED)] + [draw.randrange(3, 10_000) for _ in range(TEXT)]
        for number in range(labels):
            tokens = [*text, 10_000 + number]
            reading = Reading("likelihood", len(text), len(tokens), len(text) - 1)
            add(scene, root, tokens, max_tokens=1, reading=reading)
        for _ in range(samples):
            add(scene, root, text, max_tokens=4)
        while scene.scheduler.running or len(scene.scheduler.waiting):
            batch = scene.next()
            rows = len(batch.sampled)
            tokens = np.array([draw.randrange(3, 10_000) for _ in range(rows)], np.int64)
            output = StepOutput(tokens=tokens, logprobs={}, scores=dict.fromkeys(range(rows), b""))
            scene.scheduler.update(batch, output, 1.0)
    scene.scheduler.check_integrity()
    return found / (requests - requests // 2)


def add(scene: Scene, root: RootKey, tokens: list[int], max_tokens: int, reading: Reading | None = None) -> None:
    scene.count += 1
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    scene.scheduler.add(
        Sequence(str(scene.count), b"c", root, tokens, sampling, 0.0, reading=reading, order=scene.count)
    )


@pytest.mark.parametrize(("samples", "labels"), [(1, 0), (2, 0), (4, 0), (0, 1), (0, 3)])
def test_a_tasks_prompt_stays_however_many_rows_each_of_its_requests_is(samples: int, labels: int) -> None:
    assert share_found(samples, labels) > 0.95


def test_a_chunk_across_the_end_of_a_prompt_leaves_the_text_a_node_that_gives_way_alone() -> None:
    scene = Scene()
    scene.add([*LEAD, 6, 7, 8, 9], TUNED)
    scene.run()
    tree = scene.scheduler.cache.tree
    [lead] = tree.root(TUNED).children.values()
    [text] = lead.children.values()
    assert lead.tokens == LEAD
    assert text.tokens[:4] == [6, 7, 8, 9]
    scene.scheduler.cache.pool.give(tree.evict(tree.tokens - len(LEAD)))
    assert list(tree.nodes()) == [tree.root(TUNED), lead]
    scene.scheduler.check_integrity()


def test_a_row_that_was_sent_back_and_finds_its_own_text_is_nobody_who_comes_to_it() -> None:
    scene = Scene(slots=24, max_rows=2, context=24)
    rows = [scene.add([first, 4, 5, 6, 7], max_tokens=12) for first in (3, 8)]
    scene.run()
    assert sum(row.preemptions for row in rows) > 0
    assert not any(node.again for node in scene.scheduler.cache.tree.nodes())
