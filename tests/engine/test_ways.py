"""Whatever of the fast paths is missing, fails its proof or raises: it is left, counted, and no token is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from softmux.engine import fast
from softmux.engine.attention.base import PackedRows
from softmux.engine.graphs import DecodeGraphs
from softmux.engine.prepacked import Prepacked
from softmux.engine.runner import ModelRunner
from softmux.scheduler.rows import Step
from softmux.worker.stats import WorkerStats
from support.engines import TestEngine
from support.learned import eager_greedy, vectors_for

Make = Callable[..., TestEngine]
LEAD = [-1, -2, -3]
PROMPTS = [[10 + i, 11, 12] for i in range(5)]


class Layers:
    """Stands where the fused layers stand, over the module: runs `wrong` (or raises) in step `at`."""

    def __init__(self, runner: ModelRunner, *, raises_at: int = 0, off_by: float = 0.0) -> None:
        self._module = runner.model.module
        self._raises_at = raises_at
        self._off_by = off_by
        self.steps = 0

    def forward(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        wanted: torch.Tensor | None,
        deltas: None = None,
    ) -> torch.Tensor:
        self.steps += 1
        output = self._module(inputs_embeds=embeddings[None], position_ids=positions[None], use_cache=False)
        if self.steps == self._raises_at:
            raise RuntimeError("no kernel image is available")
        logits: torch.Tensor = output.logits[0] if wanted is None else output.logits[0, wanted]
        return logits + self._off_by * torch.arange(logits.shape[1])


class Graphs:
    """Stands where the graphs of decode steps stand, for steps of some sizes only."""

    def __init__(self, runner: ModelRunner, sizes: set[int]) -> None:
        self._runner = runner
        self._sizes = sizes

    def fits(self, rows: int) -> bool:
        return rows in self._sizes

    def replay(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        runner = self._runner
        ids, rows, positions, slots = torch.from_numpy(step).long()
        runner.table[rows, positions] = slots.int()
        tokens = torch.where(ids < 0, runner.last_tokens[rows], ids)
        packed = PackedRows(rows.tolist(), positions.tolist(), [1] * len(ids), runner.table, slots)
        logits = runner.model.forward(runner.model.embedding(tokens), positions, torch.arange(len(ids)), packed)
        chosen = logits.argmax(-1)
        runner.last_tokens[rows] = chosen
        return logits, chosen


def ask(engine: TestEngine, base: Any, new_tokens: int = 5) -> None:
    """Five rows, two of them tuned, and their tokens compared with the eager module's."""
    vectors = vectors_for(base, 3)
    root = engine.learned("tuned", vectors)
    names = {}
    for number, ids in enumerate(PROMPTS):
        tokens = [*LEAD, *ids] if number % 2 else ids
        key = root if number % 2 else engine.engine.key("default", None)
        names[engine.text(tokens, key, max_tokens=new_tokens, ignore_eos=True)] = tokens
    engine.run()
    for name, tokens in names.items():
        assert engine.done[name].error is None
        assert engine.done[name].tokens == eager_greedy(base, tokens, new_tokens, vectors)


def test_steps_are_counted_by_the_way_they_ran(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    ways = engine.engine.runner.ways
    assert not any(ways.steps.values()), "the self-test's steps are not counted"
    assert ways.in_use == {"attention": "torch", "layers": "prepacked", "graphs": "none", "products": "library"}
    ask(engine, base)
    assert ways.steps == {"graph": 0, "mixed_graph": 0, "fused": 0, "module": engine.engine.steps}
    assert not any(ways.fallbacks.values())


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_without_a_graph_of_its_size_runs_all_the_same_and_is_counted(
    make_engine: Make, base: Any, overlap: bool
) -> None:
    engine = make_engine()
    engine.engine._overlap = overlap
    runner = engine.engine.runner
    with_graph = without = 0
    for sizes in ({1, 2, 3, 4, 5}, {3}, {1}):
        runner.take(fused=Layers(runner), graphs=Graphs(runner, sizes))  # type: ignore[arg-type]
        assert (runner.ways.layers, runner.ways.graphs) == ("fused", "all")
        engine.batches.clear()
        ask(engine, base)
        decodes = [len(batch) for batch in engine.batches if not batch.chunks]
        with_graph += sum(rows in sizes for rows in decodes)
        without += sum(rows not in sizes for rows in decodes)
        assert runner.ways.fallbacks["graph"] == without
    assert with_graph > 3
    assert without > 3
    fused = engine.engine.steps - with_graph
    assert runner.ways.steps == {"graph": with_graph, "mixed_graph": 0, "fused": fused, "module": 0}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("step", [1, 3])
def test_fused_layers_that_raise_are_left_for_good_within_the_step(
    make_engine: Make, base: Any, overlap: bool, step: int
) -> None:
    engine = make_engine()
    engine.engine._overlap = overlap
    runner = engine.engine.runner
    runner.take(fused=Layers(runner, raises_at=step))  # type: ignore[arg-type]
    ask(engine, base)
    assert runner.fused is None
    assert runner.ways.in_use["layers"] == "module"
    assert runner.ways.fallbacks["fused"] == 1
    assert runner.ways.steps == {
        "graph": 0,
        "mixed_graph": 0,
        "fused": step - 1,
        "module": engine.engine.steps - step + 1,
    }


def test_a_fast_path_that_fails_its_proof_is_left_out_and_counted(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    runner, spec = engine.engine.runner, engine.engine.spec
    for layers in (Layers(runner, off_by=0.1), Layers(runner, raises_at=2), Layers(runner, off_by=float("nan"))):
        taken = fast.attempt(
            runner, spec, "fused", lambda layers=layers: runner.take(fused=layers), runner.leave_fast_paths
        )
        assert not taken
        assert engine.engine.tiers.resident == 0, "a failed proof leaves nothing behind"
        engine.engine.check_integrity()
    assert runner.fused is None
    assert fast.attempt(runner, spec, "fused", lambda: runner.take(fused=Layers(runner)), runner.leave_fast_paths)
    assert runner.ways.fallbacks["fused"] == 3
    ask(engine, base)


def test_prepacked_layers_that_fail_are_left_out_and_counted(
    make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(_: Prepacked) -> int:
        raise RuntimeError("oneDNN is not there")

    monkeypatch.setattr(Prepacked, "swap", raising)
    engine = make_engine()
    ways = engine.engine.runner.ways
    assert ways.fallbacks["prepacked"] == 1
    assert ways.in_use["layers"] == "module"
    ask(engine, base)


def test_a_graph_that_cannot_be_captured_is_missing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    captured: list[int] = []

    def capture(_: DecodeGraphs, size: int, pool: Any) -> Any:
        if size in (8, 20):
            raise torch.OutOfMemoryError("not for this one")
        captured.append(size)
        return object()

    monkeypatch.setattr(DecodeGraphs, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    nothing: Any = None
    table = torch.zeros((21, 4), dtype=torch.int32)
    graphs = DecodeGraphs(nothing, nothing, nothing, nothing, table=table, last_tokens=table, spare_slot=0, max_rows=20)
    assert graphs.capture() == [20, 8]
    assert captured == [16, 12, 4, 2, 1]
    assert graphs.fits(16)
    assert not graphs.fits(17), "its own size is missing, and there is none larger"


def test_the_workers_stats_tell_the_ways(make_engine: Make, base: Any) -> None:
    engine = make_engine()
    stats = WorkerStats(engine.engine)
    ask(engine, base)
    engine.engine.runner.ways.left("graph")
    told = stats.snapshot()
    assert told.labelled["engine_step_ways_total"]["module"] == engine.engine.steps
    assert told.labelled["fast_path_fallbacks_total"] == {
        "graph": 1,
        "mixed_graph": 0,
        "fused": 0,
        "products": 0,
        "prepacked": 0,
        "encoder": 0,
        "loras": 0,
    }
    assert told.infos["fast_paths_info"]["attention"] == "torch"
