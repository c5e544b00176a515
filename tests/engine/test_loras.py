"""LoRAs in the engine: more of them than slots, through the tiers, on the head, and never on each other's cache."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lora_kernels import interpreted

from softmux.engine.delta_products import TritonDeltas
from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.deltas import Deltas
from softmux.errors import InvalidAdapter
from softmux.worker.stats import WorkerStats
from support.engines import TestEngine
from support.loras import linear_names, make_lora
from support.models import VOCABULARY, greedy_reference, make_base

NEW_TOKENS = 6


class Tasks:
    """LoRAs of different ranks on one base, with prompts and what PEFT says to them."""

    def __init__(self, folder: Path, count: int, architecture: str = "llama", **config: Any) -> None:
        self.folder = folder
        base = make_base(architecture, folder / "base")
        names = linear_names(base)
        self.models: list[Any] = []
        for number in range(count):
            chosen = {"r": 1 + 3 * number, "target_modules": names[number % 3 :]} | config
            self.models.append(make_lora(base, folder / f"task-{number}", seed=number, **chosen))
        draw = random.Random(count)
        self.prompts = [[draw.randrange(3, VOCABULARY) for _ in range(draw.randint(2, 12))] for _ in range(2 * count)]
        self.expected = [
            greedy_reference(self.models[number % count], ids, NEW_TOKENS) for number, ids in enumerate(self.prompts)
        ]

    def check(self, engine: TestEngine, adapters: list[Any]) -> None:
        names = [
            engine.add(ids, *adapters[number % len(adapters)], max_tokens=NEW_TOKENS, ignore_eos=True)
            for number, ids in enumerate(self.prompts)
        ]
        engine.run()
        for name, (expected, certain) in zip(names, self.expected, strict=True):
            assert engine.done[name].error is None
            assert engine.done[name].tokens[:certain] == expected[:certain]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("slots", [1, 2, 64])
def test_more_loras_than_slots_take_turns(device: str, slots: int, tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 5)
    engine = TestEngine(tmp_path / "base", device=device, max_loras=slots, max_rows=4)
    adapters = [engine.adapter(tmp_path / f"task-{number}") for number in range(5)]
    for _ in range(2):
        tasks.check(engine, adapters)
    for batch in engine.batches:
        in_use = batch.table.deltas
        assert in_use.max() < slots
    assert engine.engine.tiers.slots.resident <= slots
    engine.close()


def test_a_step_mixes_many_loras_and_the_bare_model_in_one_forward(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 4)
    engine = TestEngine(tmp_path / "base")
    adapters = [engine.adapter(tmp_path / f"task-{number}") for number in range(4)]
    tasks.check(engine, adapters)  # all are in host memory now
    forwards = 0

    def count(*_: Any) -> None:
        nonlocal forwards
        forwards += 1

    handle = engine.engine.model.module.register_forward_hook(count)
    engine.batches.clear()
    tasks.check(engine, [*adapters])
    handle.remove()
    assert forwards == len(engine.batches)
    assert max(batch.adapters for batch in engine.batches) == 4
    engine.close()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])  # gemma2's is tied to the embedding, and capped behind
def test_a_lora_on_the_output_projection_acts_on_the_rows_whose_logits_are_wanted(
    architecture: str, device: str, tmp_path: Path
) -> None:
    tasks = Tasks(tmp_path, 3, architecture, target_modules=["q_proj", "lm_head"])
    engine = TestEngine(tmp_path / "base", device=device)
    tasks.check(engine, [engine.adapter(tmp_path / f"task-{number}") for number in range(3)])
    engine.close()


def test_slots_are_told_while_rows_run_and_after(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 3)
    engine = TestEngine(tmp_path / "base", max_loras=2)
    stats = WorkerStats(engine.engine)
    loaded = engine.engine.tiers.slots.loads  # by the self-test
    adapters = [engine.adapter(tmp_path / f"task-{number}") for number in range(3)]

    def told() -> tuple[float, float, float]:
        now = stats.snapshot()
        slots = now.gauges["lora_slots_in_use"], now.gauges["lora_slots_resident"]
        return *slots, now.counters["lora_slot_loads_total"] - loaded

    assert told() == (0, 0, 0)
    for number, adapter in enumerate(adapters[:2], start=1):
        engine.add(tasks.prompts[0], *adapter, max_tokens=2, ignore_eos=True)
        running = set()
        while engine.engine.scheduler.running or len(engine.engine.scheduler.waiting):
            engine.step()
            running.add(told()[0])
        assert running >= {1, 0}
        assert told() == (0, number, number)
    engine.add(tasks.prompts[0], *adapters[2], max_tokens=2, ignore_eos=True)
    engine.run()
    assert told() == (0, 2, 3), "the least recently used gave way"
    engine.close()


def test_loras_come_back_from_disk_as_they_were(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 3, trainable_token_indices=[5, 6, 7])
    for start in range(2):
        engine = TestEngine(tmp_path / "base", disk_folder=tmp_path / "disk")
        adapters = [engine.adapter(tmp_path / f"task-{number}") for number in range(3)]
        tasks.check(engine, adapters)
        assert engine.engine.tiers.loader.settle(30)
        assert len(engine.source.fetched) == (3 if start == 0 else 0)
        engine.close()


def test_one_text_under_two_loras_and_none_shares_no_keys_and_values(tmp_path: Path) -> None:
    tasks = Tasks(tmp_path, 2)
    engine = TestEngine(tmp_path / "base")
    adapters = [engine.adapter(tmp_path / f"task-{number}") for number in range(2)]
    ids = tasks.prompts[0] * 2
    for root in (adapters[0], adapters[1], (None, 0)):
        for known in (False, True):
            name = engine.add(ids, *root, max_tokens=2, ignore_eos=True)
            engine.run()
            assert (engine.done[name].cached > 0) == known
    engine.close()


def test_a_rank_beyond_the_setting_fails_its_request_in_words_and_nothing_else(tmp_path: Path) -> None:
    make_lora(make_base("llama", tmp_path / "base"), tmp_path / "large", r=9, target_modules=["q_proj"])
    engine = TestEngine(tmp_path / "base", max_lora_rank=8)
    refused = engine.add([5, 6], *engine.adapter(tmp_path / "large"), max_tokens=2)
    served = engine.add([5, 6], max_tokens=2, ignore_eos=True)
    engine.run()
    error = engine.done[refused].error
    assert isinstance(error, InvalidAdapter)
    assert "--max-lora-rank 9" in error.message
    assert len(engine.done[served].tokens) == 2
    engine.close()


def serve_by_kernels(folder: Path) -> None:
    """An engine on the CPU whose LoRAs lie in one tensor, for fewer of them than there are, and go by the kernels."""
    tasks = Tasks(folder, 4)
    engine = TestEngine(folder / "base", max_rows=6)
    runner = engine.engine.runner
    slots = DeltaSlots(
        engine.engine.spec.linears, slots=3, largest_rank=64, room=400_000, dtype=torch.float32, device=runner.device
    )
    engine.engine.tiers.slots = slots
    runner.deltas = Deltas.of(runner.model.module, slots)
    runner.deltas.products = TritonDeltas(slots)
    tasks.check(engine, [engine.adapter(folder / f"task-{number}") for number in range(4)])
    assert slots.loads >= 4
    engine.close()


@pytest.mark.triton
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_an_engine_on_the_kernels_in_the_interpreter(tmp_path: Path) -> None:
    interpreted(f"import pathlib, test_loras as t\nt.serve_by_kernels(pathlib.Path({str(tmp_path)!r}))\nprint('equal')")
