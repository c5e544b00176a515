"""In float32 a row's tokens depend on nothing but the row: not on who shares the batch, nor on how the step is run."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import TestEngine
from support.learned import vectors_for
from support.models import VOCABULARY, make_base

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
ROWS, NEW_TOKENS = 40, 6
_SURE = 1e-3
"""Rows whose two best tokens are nearer than this somewhere decide by rounding, and are left out (and counted)."""

Prompt = tuple[list[int], int]
"""Token ids, and which of the adapters (−1: none) they are for."""


class Server:
    """An engine with three adapters, and prompts for them."""

    def __init__(self, folder: Path, device: str, **settings: Any) -> None:
        base = make_base("llama", folder)
        self.engine = TestEngine(folder, device=device, max_rows=ROWS, **settings)
        self.roots = [self.engine.learned(f"task-{i}", vectors_for(base, 3 + i, seed=i)) for i in range(3)]
        draw = random.Random(7)
        self.prompts: list[Prompt] = []
        for number in range(ROWS):
            adapter = number % 4 - 1
            lead = [-1 - i for i in range(3 + adapter)] if adapter >= 0 else []
            ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 30))]
            self.prompts.append(([*lead, *ids], adapter))
        self.sure: list[int] = []
        self.expected: dict[int, list[int]] = {}

    def run(self, which: list[int], **wishes: Any) -> dict[int, Any]:
        """All of them at once, with an empty cache."""
        self.engine.forget_kv()
        names = {}
        for number in which:
            tokens, adapter = self.prompts[number]
            root = self.roots[adapter] if adapter >= 0 else self.engine.engine.key("default", None)
            names[number] = self.engine.text(tokens, root, max_tokens=NEW_TOKENS, ignore_eos=True, **wishes)
        self.engine.run()
        return {number: self.engine.done[name] for number, name in names.items()}

    def alone(self) -> None:
        """What each row says with nobody beside it; keeps those whose every token is sure."""
        for number in range(ROWS):
            done = self.run([number], logprobs=2)[number]
            gaps = [entry.top_logprobs[0] - entry.top_logprobs[1] for entry in done.logprobs]
            if min(gaps) > _SURE:
                self.sure.append(number)
                self.expected[number] = done.tokens
        assert len(self.sure) > ROWS * 0.7, "the model decides too little for this to be a test"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def make(device: str, **settings: Any) -> Server:
        made.append(Server(tmp_path, device, **settings))
        return made[-1]

    yield make
    for each in made:
        each.engine.close()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("budget", [48, 2048], ids=["in chunks", "whole"])
def test_a_row_says_the_same_whoever_shares_its_batch(server: Callable[..., Server], device: str, budget: int) -> None:
    made = server(device, max_step_tokens=budget)
    made.alone()
    draw = random.Random(1)
    for size in (ROWS, ROWS // 2, 5, 2):
        which = draw.sample(range(ROWS), size)
        for number, done in made.run(which).items():
            if number in made.expected:
                assert done.tokens == made.expected[number], f"row {number} among {sorted(which)}"


@pytest.mark.gpu
def test_graphs_of_every_size_say_what_steps_without_graphs_say(server: Callable[..., Server]) -> None:
    made = server("cuda", max_step_tokens=2048)
    runner = made.engine.engine.runner
    graphs, runner.graphs, runner.mixed = runner.graphs, None, None
    assert graphs is not None, "a Llama in float32 has graphs on a GPU"
    made.alone()
    runner.graphs = graphs
    for size in range(1, ROWS + 1):  # every bucket, and every way of padding one
        for number, done in made.run(list(range(size))).items():
            if number in made.expected:
                assert done.tokens == made.expected[number], f"row {number} of {size}"


@pytest.mark.gpu
@pytest.mark.parametrize("budget", [48, 1024], ids=["in chunks", "whole"])
def test_graphs_of_mixed_steps_say_what_steps_without_graphs_say(server: Callable[..., Server], budget: int) -> None:
    made = server("cuda", max_step_tokens=budget)
    runner = made.engine.engine.runner
    mixed, runner.mixed = runner.mixed, None
    assert mixed is not None, "a Llama in float32 has graphs of mixed steps on a GPU"
    made.alone()
    runner.mixed = mixed
    draw = random.Random(2)
    for wishes in ({}, {"logprobs": 1}):
        for size in range(1, ROWS + 1):
            for number, done in made.run(draw.sample(range(ROWS), size), **wishes).items():
                if number in made.expected:
                    assert done.tokens == made.expected[number], f"row {number} of {size}"
    steps = runner.ways.steps
    assert steps["mixed_graph"] >= 2 * ROWS, "each run begins with a step of prompts"


@pytest.mark.gpu
def test_fused_layers_say_what_the_module_says(server: Callable[..., Server]) -> None:
    made = server("cuda", max_step_tokens=2048)
    runner = made.engine.engine.runner
    (fused, graphs), (runner.fused, runner.graphs, runner.mixed) = (runner.fused, runner.graphs), (None, None, None)
    assert fused is not None, "a Llama has fused layers on a GPU"
    made.alone()
    runner.fused = fused
    for way in (None, graphs):
        runner.graphs = way
        for number, done in made.run(list(range(ROWS))).items():
            if number in made.expected:
                assert done.tokens == made.expected[number], f"row {number}, graphs {way is not None}"


def test_the_cpus_prepacked_layers_say_what_the_module_says(
    server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("softmux.engine.fast._prepack", lambda *_: None)
    plain = server("cpu")
    plain.alone()
    monkeypatch.undo()
    for number, done in server("cpu").run(list(range(ROWS))).items():
        if number in plain.expected:
            assert done.tokens == plain.expected[number]
