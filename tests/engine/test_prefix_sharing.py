"""Whose KV is computed, how often, and who may share it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from support.engines import TestEngine
from support.learned import eager_greedy, vectors_for

Make = Callable[..., TestEngine]


def lead(count: int) -> list[int]:
    return [-1 - i for i in range(count)]


@pytest.mark.parametrize("overlap", [False, True])
def test_sixteen_cold_requests_of_one_adapter_compute_its_prefix_once(
    make_engine: Make, base: Any, overlap: bool
) -> None:
    engine = make_engine(max_step_tokens=256)
    engine.engine._overlap = overlap
    vectors = vectors_for(base, 20)
    root = engine.learned("tuned", vectors)
    texts = [[3 + i, 7, 50 - i] for i in range(16)]
    names = [engine.text([*lead(20), *text], root, max_tokens=4, ignore_eos=True) for text in texts]
    engine.run()
    assert engine.virtual_tokens_run() == 20
    assert [len(save.slots) for batch in engine.batches for save in batch.saves] == [20]
    assert [engine.done[name].cached for name in names] == [0] + [20] * 15
    assert [engine.done[name].tokens for name in names] == [
        eager_greedy(base, [*lead(20), *text], 4, vectors) for text in texts
    ]


def test_a_chat_goes_on_from_what_was_answered(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    root = engine.learned("tuned", vectors_for(base, 5))
    first = engine.text([*lead(5), 10, 11, 12], root, max_tokens=6, ignore_eos=True)
    engine.run()
    history = [*lead(5), 10, 11, 12, *engine.done[first].tokens]
    second = engine.text([*history, 20, 21], root, max_tokens=3, ignore_eos=True)
    engine.run()
    assert engine.done[second].cached == len(history) - 1, "the last token's KV was never needed"
    assert engine.done[second].tokens == eager_greedy(base, [*history, 20, 21], 3, vectors_for(base, 5))


def test_the_same_text_as_ids_as_vectors_and_as_anothers_never_shares_kv(make_engine: Make, base: Any) -> None:
    """A cache key that leaves out which positions are vectors, or whose, reuses wrong KV (vLLM issue 56655)."""
    engine = make_engine()
    ids = [10, 11, 12, 13]
    same = base.get_input_embeddings().weight[ids].detach().clone()
    other = vectors_for(base, 4, seed=9)
    text = [20, 21, 22]
    runs: list[tuple[list[int], Any, torch.Tensor | None]] = [
        ([*ids, *text], engine.engine.key("one", None), None),
        ([*ids, *text], engine.engine.key("two", None), None),
        ([*lead(4), *text], engine.learned("same", same, "one"), same),
        ([*lead(4), *text], engine.learned("same", same, "two"), same),
        ([*lead(4), *text], engine.learned("other", other, "one"), other),
        ([*ids, *text], engine.learned("other", other, "one"), other),
    ]
    names = [engine.text(tokens, root, max_tokens=4, ignore_eos=True) for tokens, root, _ in runs]
    engine.run()
    assert [engine.done[name].cached for name in names] == [0] * len(runs)
    expected = [eager_greedy(base, tokens, 4, vectors) for tokens, _, vectors in runs]
    assert [engine.done[name].tokens for name in names] == expected
    assert expected[0] == expected[2] != expected[4], "the same vectors say the same, others do not"


def test_samples_of_one_prompt_run_it_once(make_engine: Make) -> None:
    engine = make_engine()
    names = [
        engine.add(list(range(10, 30)), sample=i, temperature=1.5, seed=4, max_tokens=8, ignore_eos=True)
        for i in range(8)
    ]
    engine.run()
    prompt = sum(chunk.count for batch in engine.batches for chunk in batch.chunks)
    assert prompt == 20 + 7, "all of it once, and its last token for each further sample"
    assert len({tuple(engine.done[name].tokens) for name in names}) > 4


def test_learned_tokens_in_the_middle_and_alone(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    vectors = vectors_for(base, 6)
    root = engine.learned("template", vectors)
    layouts = [
        [-1, -2, 10, 11, 12, -3, -4, 13],
        [10, -1, 11, -2, -3, 12, -4, -5, -6],
        [-1, -2, 10, 11, 12, -3, -4, 14],
        [10, 11, *lead(6)],
        lead(6),
        [*lead(6), 5],
    ]
    for _ in range(2):
        names = [engine.text(tokens, root, max_tokens=5, ignore_eos=True) for tokens in layouts]
        engine.run()
        for name, tokens in zip(names, layouts, strict=True):
            assert engine.done[name].tokens == eager_greedy(base, tokens, 5, vectors), tokens
    engine.batches.clear()
    again = engine.text(layouts[0], root, max_tokens=1)
    engine.run()
    assert engine.done[again].cached == len(layouts[0]) - 1


@pytest.mark.parametrize("group", [True, False])
def test_grouping_changes_the_order_and_no_token(make_engine: Make, base: Any, group: bool) -> None:
    engine = make_engine(group_by_adapter=group, max_rows=4, max_step_tokens=32)
    vectors = [vectors_for(base, 5, seed) for seed in range(4)]
    roots = [engine.learned(f"task{i}", vectors[i]) for i in range(4)]
    names = [(engine.text([*lead(5), 10 + i, 11], roots[i % 4], max_tokens=4, ignore_eos=True), i) for i in range(24)]
    engine.run()
    for name, i in names:
        assert engine.done[name].tokens == eager_greedy(base, [*lead(5), 10 + i, 11], 4, vectors[i % 4])
    adapters = [batch.adapters for batch in engine.batches]
    assert (sum(adapters) / len(adapters) < 2.5) == group
