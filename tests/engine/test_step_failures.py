"""What goes wrong in a step stays with the rows it belongs to; the others' tokens are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from softmux.engine.host_adapter import HostAdapter
from support.engines import TestEngine
from support.learned import eager_greedy, vectors_for

Make = Callable[..., TestEngine]
LEAD = [-1, -2, -3, -4, -5]


def launch_fails_at(engine: TestEngine, step: int) -> None:
    """The step's forward runs, and then raises: its KV is written, its tokens are lost."""
    runner = engine.engine.runner
    launch, count = runner.launch, [0]

    def failing(batch: Any) -> Any:
        launched = launch(batch)
        count[0] += 1
        if count[0] == step:
            raise RuntimeError("out of memory, say")
        return launched

    runner.launch = failing  # type: ignore[method-assign]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("wishes", [{}, {"temperature": 1.0, "seed": 3, "top_k": 5}], ids=["greedy", "drawn"])
def test_an_adapter_that_is_not_finite_fails_its_own_rows_alone(
    make_engine: Make, base: Any, overlap: bool, wishes: dict[str, Any]
) -> None:
    engine = make_engine()
    engine.engine._overlap = overlap
    good = vectors_for(base, 5)
    bad = good.clone()
    bad[2, 7] = float("nan")
    sound, broken = engine.learned("good", good), engine.engine.key("default", "bad")
    engine.engine.tiers.adopt(broken, HostAdapter(bad))
    fine = [engine.text([*LEAD, 10, i], sound, max_tokens=6, ignore_eos=True) for i in range(6, 9)]
    bare = engine.add([10, 11, 12], max_tokens=6, ignore_eos=True)
    poor = [engine.text([*LEAD, 10, i], broken, max_tokens=6, **wishes) for i in range(6, 9)]
    engine.run()
    for name in poor:
        error = engine.done[name].error
        assert error is not None
        assert "not finite" in error.message
        assert engine.done[name].tokens == []
    later = engine.text([*LEAD, 10, 11], sound, max_tokens=6, ignore_eos=True)  # in slots that held NaN
    engine.run()
    for name, text in zip([*fine, later], [[10, 6], [10, 7], [10, 8], [10, 11]], strict=True):
        assert engine.done[name].tokens == eager_greedy(base, [*LEAD, *text], 6, good)
    assert engine.done[bare].tokens == eager_greedy(base, [10, 11, 12], 6)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_step_that_raises_fails_its_rows_and_the_rest_is_exact(
    make_engine: Make, base: Any, overlap: bool, step: int
) -> None:
    engine = make_engine(max_rows=4)
    engine.engine._overlap = overlap
    launch_fails_at(engine, step)
    vectors = vectors_for(base, 5)
    root = engine.learned("tuned", vectors)
    prompts = [[*LEAD, 10 + i, 11] if i % 2 else [10 + i, 11] for i in range(8)]
    names = [
        engine.text(tokens, root if i % 2 else engine.engine.key("default", None), max_tokens=5, ignore_eos=True)
        for i, tokens in enumerate(prompts)
    ]
    engine.run()
    failed = [name for name in names if engine.done[name].error is not None]
    assert 0 < len(failed) <= 4
    for name, tokens in zip(names, prompts, strict=True):
        expected = eager_greedy(base, tokens, 5, vectors)
        done = engine.done[name]
        if name in failed:
            assert done.error is not None
            assert done.error.code == "internal"
            assert done.tokens == expected[: len(done.tokens)]
        else:
            assert done.tokens == expected


@pytest.mark.parametrize("overlap", [False, True])
def test_preemption_changes_no_token(make_engine: Make, base: Any, overlap: bool) -> None:
    vectors = vectors_for(base, 5)
    prompts = [[*LEAD, 10 + i, 11, 12] for i in range(6)]
    told = []
    for slots in (4096, 64):
        engine = make_engine(kv_tokens=slots, max_rows=6)
        engine.engine._overlap = overlap
        root = engine.learned("tuned", vectors)
        names = [engine.text(tokens, root, max_tokens=20, ignore_eos=True, seed=i) for i, tokens in enumerate(prompts)]
        engine.run()
        assert (engine.engine.scheduler.preemptions > 0) == (slots == 64)
        told.append([engine.done[name].tokens for name in names])
    assert told[0] == told[1]
    assert told[0][0] == eager_greedy(base, prompts[0], 20, vectors)


@pytest.mark.parametrize("overlap", [False, True])
def test_aborts_in_flight_leave_the_others_exact(make_engine: Make, base: Any, overlap: bool) -> None:
    engine = make_engine(kv_tokens=96)
    engine.engine._overlap = overlap
    prompts = [[10 + i, 11, 12] for i in range(8)]
    names = [engine.add(tokens, max_tokens=10, ignore_eos=True) for tokens in prompts]
    for gone in names[::2]:
        engine.step()
        engine.engine.scheduler.abort(b"", gone)
        engine.engine.check_integrity()
    engine.run()
    for name, tokens in zip(names[1::2], prompts[1::2], strict=True):
        assert engine.done[name].tokens == eager_greedy(base, tokens, 10)


def test_slots_that_held_nan_are_clean_for_the_next(make_engine: Make, base: Any) -> None:
    engine = make_engine(kv_tokens=64)
    for tensors in (engine.engine.runner.pool.keys, engine.engine.runner.pool.values):
        for tensor in tensors:
            tensor.fill_(float("nan"))
    prompts = [[10] * 3, [11] * 20, [12]]
    names = [engine.add(tokens, max_tokens=4, ignore_eos=True) for tokens in prompts]
    engine.run()
    for name, tokens in zip(names, prompts, strict=True):
        assert engine.done[name].tokens == eager_greedy(base, tokens, 4)
