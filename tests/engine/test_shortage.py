"""Out of memory, at any step and anywhere in it: what is refused is told so, everything else is token-exact."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from softmux.engine.device import is_shortage
from softmux.engine.heads import head_rows
from softmux.engine.packed import PackedModel
from softmux.engine.shortage import LEAST, PATIENCE, Shortage, parts
from softmux.engine.vocabulary import VirtualVocabulary
from softmux.formats.parts import HeadPart
from softmux.scheduler.batch import Batch
from support.engines import TestEngine
from support.learned import eager_greedy, vectors_for

Make = Callable[..., TestEngine]
LEAD = [-1, -2, -3, -4, -5]
NEW = 6


class Shortages:
    """Makes a launch raise, by chance or in given steps, at a place in it: before anything has run, when vectors have
    been given rows but are not copied, in a layer's attention, after the forward, or when tokens are kept already."""

    PLACES = ("start", "vectors", "layer", "logits", "kept")

    def __init__(self, engine: TestEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.draw = random.Random(5)
        self.chance = 0.0
        self.places: tuple[str, ...] = self.PLACES
        self.raised = 0
        self._at: str | None = None
        self._runner = runner = engine.engine.runner
        launch, attend, forward = runner.launch, runner.backend.attend_written, PackedModel.forward

        def launching(batch: Batch) -> Any:
            self._at = self.draw.choice(self.places) if self.draw.random() < self.chance else None
            self._reach("start")
            launched = launch(batch)
            self._reach("kept")
            return launched

        def attending(layer: int, query: torch.Tensor, **more: Any) -> torch.Tensor:
            if layer == 1:
                self._reach("layer")
            return attend(layer, query, **more)

        def forwarding(model: PackedModel, *inputs: Any) -> torch.Tensor:
            logits = forward(model, *inputs)
            self._reach("logits")
            return logits

        place = VirtualVocabulary._place

        def placing(*inputs: Any) -> list[int]:
            rows = place(*inputs)
            self._reach("vectors")
            return rows

        monkeypatch.setattr(runner, "launch", launching)
        monkeypatch.setattr(runner.backend, "attend_written", attending)
        monkeypatch.setattr(PackedModel, "forward", forwarding)
        monkeypatch.setattr(VirtualVocabulary, "_place", placing)

    def _reach(self, place: str) -> None:
        if self._at == place:
            self._at = None
            self.raised += 1
            if place == "kept":
                self._runner.last_tokens.fill_(1)  # as a step does that keeps its tokens, and raises then
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def load(engine: TestEngine, base: Any, rows: int) -> dict[str, tuple[list[int], Any, bool]]:
    """Rows of three adapters and of none, some that draw their tokens; by name: tokens, vectors, whether it draws."""
    asked = {}
    draw = random.Random(3)
    every = [vectors_for(base, 5, seed=i) for i in range(3)]
    roots = [engine.learned(f"task-{i}", vectors) for i, vectors in enumerate(every)]
    for number in range(rows):
        which = number % 4 - 1
        ids = [draw.randrange(3, 96) for _ in range(draw.randint(1, 30))]
        tokens = [*LEAD, *ids] if which >= 0 else ids
        drawn = number % 5 == 4
        wishes = {"temperature": 1.0, "seed": number, "top_k": 8, "logprobs": 1} if drawn else {}
        root = roots[which] if which >= 0 else engine.engine.key("default", None)
        name = engine.text(tokens, root, max_tokens=NEW, ignore_eos=True, **wishes)
        asked[name] = (tokens, every[which] if which >= 0 else None, drawn)
    return asked


def expected_of(engine: TestEngine, base: Any, asked: dict[str, tuple[list[int], Any, bool]]) -> list[list[int]]:
    """The eager module's tokens; of rows that draw, what an undisturbed engine says."""
    engine.run()
    return [
        engine.done[name].tokens if drawn else eager_greedy(base, tokens, NEW, vectors)
        for name, (tokens, vectors, drawn) in asked.items()
    ]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("chance", [0.1, 0.4, 0.8])
def test_whatever_step_runs_out_of_memory_no_token_is_wrong(
    make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch, overlap: bool, chance: float
) -> None:
    calm = make_engine(max_rows=8)
    expected = expected_of(calm, base, load(calm, base, 24))
    engine = make_engine(max_rows=8, resident_vectors=64)
    engine.engine._overlap = overlap
    shortages = Shortages(engine, monkeypatch)
    shortages.chance = chance
    asked = load(engine, base, 24)
    while engine.engine.scheduler.running or len(engine.engine.scheduler.waiting) or not engine.engine.idle:
        engine.step()
        engine.engine.check_integrity()
    refused = 0
    for name, wanted in zip(asked, expected, strict=True):
        done = engine.done[name]
        if done.error is not None:
            assert done.error.code == "overloaded"
            assert done.error.retry_after
            refused += 1
        else:
            assert len(done.tokens) == NEW
        assert done.tokens == wanted[: len(done.tokens)]
    shortage = engine.engine.shortage
    assert shortages.raised > 2
    assert shortage.refused == refused
    assert shortage.counts["split"] + 2 * shortage.counts["requeued"] <= shortages.raised
    assert shortage.counts["split" if chance < 0.3 else "requeued"] > 0
    shortages.chance = 0.0
    again = load(engine, base, 24)
    engine.run()
    assert [engine.done[name].tokens for name in again] == expected


@pytest.mark.parametrize("place", Shortages.PLACES)
def test_a_step_that_is_run_in_parts_refuses_nobody(
    make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    calm = make_engine(max_rows=8)
    expected = expected_of(calm, base, load(calm, base, 8))
    engine = make_engine(max_rows=8)
    engine.engine._overlap = True
    shortages = Shortages(engine, monkeypatch)
    shortages.places = (place,)
    asked = load(engine, base, 8)
    while engine.engine.scheduler.running or len(engine.engine.scheduler.waiting) or not engine.engine.idle:
        shortages.chance = 1.0 if engine.engine.shortage.counts["split"] < 4 else 0.0
        launch = engine.engine.runner.launch

        def first_only(batch: Batch, launch: Any = launch) -> Any:
            try:
                return launch(batch)
            finally:
                shortages.chance = 0.0

        monkeypatch.setattr(engine.engine.runner, "launch", first_only)
        engine.step()
        monkeypatch.setattr(engine.engine.runner, "launch", launch)
    assert shortages.raised > 0
    assert engine.engine.shortage.counts == {"split": shortages.raised, "requeued": 0}
    assert [engine.done[name].tokens for name in asked] == expected


def test_with_no_memory_at_all_everyone_is_refused_and_the_server_lives(
    make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(max_rows=8)
    shortages = Shortages(engine, monkeypatch)
    shortages.chance = 1.0
    shortages.places = ("start",)
    names = list(load(engine, base, 30))
    engine.run()
    assert all(engine.done[name].error is not None for name in names)
    codes = {error.code for name in names if (error := engine.done[name].error) is not None}
    assert codes == {"overloaded"}
    first, last = engine.done[names[0]], engine.done[names[-1]]
    assert engine.engine.shortage.refused == 30
    assert first.error is not None
    assert last.error is not None
    shortages.chance = 0.0
    name = engine.add([10, 11, 12], max_tokens=NEW, ignore_eos=True)
    engine.run()
    assert engine.done[name].tokens == eager_greedy(base, [10, 11, 12], NEW)


def test_the_newest_are_refused_first(make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_rows=4)
    shortages = Shortages(engine, monkeypatch)
    shortages.places = ("start",)
    names = [engine.add([10 + i, 11], max_tokens=NEW, ignore_eos=True) for i in range(12)]
    shortages.chance = 1.0
    engine.step()
    shortages.chance = 0.0
    refused = [name for name in names if engine.done[name].error is not None]
    assert refused == names[-len(refused) :]
    assert len(refused) == 4, "half of those that waited beside the four that ran"
    engine.run()
    for number, name in enumerate(names[:8]):
        assert engine.done[name].tokens == eager_greedy(base, [10 + number, 11], NEW)


def test_steps_are_smaller_for_a_while(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_rows=32, max_step_tokens=64)
    shortages = Shortages(engine, monkeypatch)
    shortages.places = ("start",)
    for number in range(32):
        engine.add([10 + number, 11, 12], max_tokens=90, ignore_eos=True)
    launch, count = engine.engine.runner.launch, [0]

    def once(batch: Batch) -> Any:
        count[0] += 1
        shortages.chance = 1.0 if count[0] == 1 else 0.0
        return launch(batch)

    monkeypatch.setattr(engine.engine.runner, "launch", once)
    engine.step()
    assert engine.engine.shortage.limit == 32
    assert engine.engine.shortage.counts == {"split": 1, "requeued": 0}
    engine.batches.clear()
    engine.run()
    sizes = [batch.tokens for batch in engine.batches]
    assert max(sizes[: PATIENCE - 1]) <= 32


def test_the_limit_is_halved_and_lifted_again() -> None:
    shortage = Shortage()
    shortage.tighten(400)
    assert shortage.limit == 200
    shortage.tighten(100)
    assert shortage.limit == 50
    for _ in range(5):
        shortage.tighten(1)
    assert shortage.limit == LEAST
    for _ in range(PATIENCE):
        shortage.calm(100)
    assert shortage.limit == 2 * LEAST
    for _ in range(2 * PATIENCE):
        shortage.calm(100)
    assert shortage.limit is None


def test_what_is_a_shortage() -> None:
    assert is_shortage(torch.OutOfMemoryError("anything"))
    assert is_shortage(RuntimeError("CUDA error: out of memory"))
    assert is_shortage(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_shortage(RuntimeError("an illegal memory access was encountered"))


@pytest.mark.parametrize("most", [1, 3, 7, 100])
def test_parts_are_the_batch_in_its_own_order(make_engine: Make, most: int) -> None:
    engine = make_engine(max_rows=8)
    for length in (1, 5, 2):
        engine.add(list(range(10, 10 + length)), max_tokens=4, ignore_eos=True)
    engine.step()
    for length in (9, 4):
        engine.add(list(range(20, 20 + length)), max_tokens=4, ignore_eos=True)
    batch, _ = engine.engine.scheduler.next(0.0)
    made = parts(batch, most)
    assert all(part.tokens <= most for part in made)
    columns = [column for part in made for column in part.decodes.T.tolist()]
    assert columns == batch.decodes.T.tolist()
    told: dict[int, list[int]] = {}
    for part in made:
        for chunk in part.chunks:
            told.setdefault(chunk.row, []).extend(range(chunk.start, chunk.start + chunk.count))
    assert told == {chunk.row: list(range(chunk.start, chunk.start + chunk.count)) for chunk in batch.chunks}
    assert [c.row for part in made for c in part.chunks if c.samples] == [c.row for c in batch.chunks if c.samples]
    engine.engine._fell(batch, RuntimeError("it never ran"), type(engine.engine.step())())


@pytest.mark.gpu
def test_a_card_that_is_full_runs_smaller_steps_and_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 2, "num_attention_heads": 16}
    tf.LlamaForCausalLM(
        tf.LlamaConfig(**sizes, num_key_value_heads=8, vocab_size=1024, max_position_embeddings=512)
    ).save_pretrained(tmp_path)
    engine = TestEngine(tmp_path, device="cuda", kv_tokens=16384, max_rows=64, max_step_tokens=8192)
    runner = engine.engine.runner
    runner.graphs = runner.mixed = None  # their memory is their own: what is short here is for steps without
    draw = random.Random(0)
    prompts = [[draw.randrange(3, 1024) for _ in range(120)] for _ in range(64)]

    def asked() -> list[str]:
        engine.forget_kv()
        return [engine.add(tokens, max_tokens=4, ignore_eos=True) for tokens in prompts]

    before = asked()
    engine.run()
    torch.cuda.empty_cache()
    fillers = []
    free, _ = torch.cuda.mem_get_info()
    fillers.append(torch.empty(free - (96 << 20), dtype=torch.uint8, device="cuda"))
    names = asked()
    engine.run()
    shortage = engine.engine.shortage
    print(f"{shortage.counts}, {shortage.refused} refused, limit {shortage.limit}")
    assert shortage.counts["split"] + shortage.counts["requeued"] > 0, "the card was not full"
    answered = [(a, b) for a, b in zip(before, names, strict=True) if engine.done[b].error is None]
    assert len(answered) == len(names) - shortage.refused > 0
    same = sum(engine.done[a].tokens == engine.done[b].tokens for a, b in answered)
    assert same >= 0.95 * len(answered), "but for ties: other sums, in steps of other sizes"
    del fillers
    engine.close()


@pytest.mark.parametrize("length", [9, 40])
def test_a_row_that_is_read_is_read_whole_and_told_when_its_step_is_run_in_parts(
    make_engine: Make, base: Any, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    texts = [[3 + (7 * i + 5 * number) % 90 for i in range(length)] for number in range(3)]

    def ask(engine: TestEngine) -> list[str]:
        engine.add([10, 11, 12], max_tokens=NEW, ignore_eos=True)
        return [engine.read(ids, scored=length - 1) for ids in texts]

    calm = make_engine(max_rows=8, max_step_tokens=256)
    expected = ask(calm)
    calm.run()
    engine = make_engine(max_rows=8, max_step_tokens=256)
    launch, raised = engine.engine.runner.launch, list[int]()

    def first_raises(batch: Batch) -> Any:
        if not raised:
            raised.append(batch.tokens)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return launch(batch)

    monkeypatch.setattr(engine.engine.runner, "launch", first_raises)
    names = ask(engine)
    engine.run()
    assert engine.engine.shortage.counts["split"] == 1
    for name, calmly in zip(names, expected, strict=True):
        assert engine.done[name].error is None
        found, wanted = (np.frombuffer(of.scores, np.float32) for of in (engine.done[name], calm.done[calmly]))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_head_whose_copy_failed_is_copied_again(make_engine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(max_rows=8)
    runner, root = engine.engine.runner, engine.engine.key("default", None)
    width = runner.model.state_width
    weight = torch.randn((3, width), generator=torch.Generator().manual_seed(1))
    shape, rows = head_rows(HeadPart("sequence", weight.numpy(), None, None, False, ("a", "b", "c"), None))
    monkeypatch.setattr(runner.heads, "_shape_of", lambda _: shape)
    monkeypatch.setattr(runner.heads, "_rows_of", lambda _: rows)
    engine.add([10, 11, 12], max_tokens=NEW, ignore_eos=True)
    batch, _ = engine.engine.scheduler.next(0.0)
    launched = runner.launch(batch)
    states = torch.randn((1, width), generator=torch.Generator().manual_seed(2))
    with monkeypatch.context() as failing:

        def scatter(*_: Any) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        failing.setattr(type(runner.pool.copies), "scatter", scatter)
        with pytest.raises(torch.OutOfMemoryError):
            runner.heads.scores(states, [root], [1])
    runner.undo(batch)
    torch.testing.assert_close(runner.heads.scores(states, [root], [1])[0], states @ weight.t())
    engine.engine.scheduler.update(batch, runner.collect(launched), 0.0)
    engine.engine.scheduler.abort_client(b"")
