"""The fused engine without a card: its kernels in Triton's interpreter (`TRITON_INTERPRET=1`), and in place of each
graph the step that it was captured of, run again. Minutes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.test_batch_independence import Server

_WHY = "needs TRITON_INTERPRET=1; a GPU runs test_batch_independence"
pytestmark = [pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason=_WHY), pytest.mark.timeout(1200)]
ASKED = 12


class Again:
    """A graph as far as a replay goes: what the step gives is found where the captured one's result was."""

    def __init__(self, step: Callable[[], Any], result: Any) -> None:
        self._step = step
        self._result = result

    def replay(self) -> None:
        found = self._step()
        pairs = zip(self._result, found, strict=True) if isinstance(found, tuple) else [(self._result, found)]
        for kept, new in pairs:
            kept.copy_(new)


@pytest.fixture
def without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    from softmux.engine import fast, graphs, mixed_graphs
    from softmux.engine.attention.triton_paged import TritonAttention
    from softmux.engine.products import Products

    def captured(step: Callable[[], Any], device: torch.device, pool: Any) -> tuple[Again, Any]:
        result = step()
        return Again(step, result), result

    for module in (graphs, mixed_graphs):
        monkeypatch.setattr(module, "captured", captured)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(multi_processor_count=4))
    monkeypatch.setattr(mixed_graphs.MixedGraphs, "_pays", lambda _, size: True)
    monkeypatch.setattr("softmux.engine.engine.best_backend", lambda *_, **__: TritonAttention)
    monkeypatch.setattr(fast, "_prepack", lambda *_: None)
    monkeypatch.setattr(Products, "measure", lambda *_, **__: None)
    monkeypatch.setattr(graphs.DecodeGraphs.__init__, "__kwdefaults__", {"sizes": (4,)})
    monkeypatch.setattr(mixed_graphs.MixedGraphs.__init__, "__kwdefaults__", {"sizes": (32, 256)})


@pytest.mark.usefixtures("without_a_card")
@pytest.mark.parametrize("budget", [48, 256], ids=["in chunks", "whole"])
def test_graphs_say_what_the_module_says(tmp_path: Path, budget: int) -> None:
    server = Server(tmp_path, "cpu", max_step_tokens=budget)
    runner = server.engine.engine.runner
    paths = runner.mixed, runner.graphs, runner.fused
    assert None not in paths, "the fused layers are left out"
    assert not any(runner.ways.fallbacks.values())
    runner.mixed = runner.graphs = runner.fused = None
    expected = {number: server.run([number])[number].tokens for number in range(ASKED)}
    runner.mixed, runner.graphs, runner.fused = paths
    before = dict(runner.ways.steps)
    draw = random.Random(3)
    for size, wishes in ((2, {}), (ASKED, {}), (7, {"logprobs": 1}), (ASKED, {"temperature": 0.0, "min_tokens": 2})):
        for number, done in server.run(draw.sample(range(ASKED), size), **wishes).items():
            assert done.tokens == expected[number], f"row {number} of {size}"
    taken = {way: count - before[way] for way, count in runner.ways.steps.items()}
    assert taken["mixed_graph"] >= 4
    assert taken["graph"] >= 4
    assert taken["module"] == 0
    server.engine.close()
