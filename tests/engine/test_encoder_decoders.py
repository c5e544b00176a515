"""An encoder-decoder's rows: one pass of each stack a step, at any phase, and nothing left behind."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf

from softmux.engine.deltas import Deltas
from softmux.engine.encoder_decoder import PackedEncoderDecoder
from softmux.errors import ContextTooLong, InvalidAdapter, InvalidRequest, SelfTestFailed
from softmux.formats.parts import PAIR
from support.encoder_decoders import ARCHITECTURES, KV_METHODS, make_adapter, make_base
from support.engines import TestEngine
from support.models import VOCABULARY, greedy_reference

KINDS = (None, "prompt_tuning", "prefix_tuning", "lora")


class Bench:
    """A saved base of an architecture, an adapter of each kind, and engines over them."""

    def __init__(self, architecture: str, folder: Path) -> None:
        self.folder = folder
        self.base = make_base(architecture, folder / "base")
        for kind in KINDS[1:]:
            make_adapter(self.base, kind, folder / kind)

    def engine(self, **settings: Any) -> TestEngine:
        return TestEngine(self.folder / "base", **settings)

    def load(self, engine: TestEngine, rows: int, **sampling: Any) -> list[str]:
        draw = random.Random(rows)
        adapters = {kind: engine.adapter(self.folder / kind) if kind else (None, 0) for kind in KINDS}
        names = []
        for number in range(rows):
            kind = KINDS[number % len(KINDS)]
            ids = [draw.randrange(3, VOCABULARY) for _ in range(draw.randint(1, 20))]
            asked = {"max_tokens": 3 + number % 7, "ignore_eos": True} | sampling
            names.append(engine.add(ids, *adapters[kind], sample=number, trained_prefix=kind in KV_METHODS, **asked))
        return names


@pytest.fixture(scope="module", params=["flan_t5", "bart"])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(request.param, tmp_path_factory.mktemp("bench"))


def told(engine: TestEngine, names: list[str]) -> list[list[int]]:
    assert all(engine.done[name].error is None for name in names)
    return [engine.done[name].tokens for name in names]


@pytest.fixture(scope="module")
def calm(bench: Bench) -> list[list[int]]:
    """What sixteen rows say that have all the room they want."""
    engine = bench.engine()
    names = bench.load(engine, 16)
    engine.run()
    engine.close()
    return told(engine, names)


def test_a_long_step_is_seen_to_get_on_layer_by_layer(bench: Bench) -> None:
    engine = bench.engine()
    recorder, stacks = engine.engine.recorder, engine.engine.model.module.config
    layers = stacks.num_hidden_layers + 2 * len(engine.engine.model.layers)  # of a decoder's, its own and the source
    engine.add([3, 4, 5], max_tokens=2)
    before = recorder.beats
    engine.step()
    assert recorder.beats - before >= layers
    engine.close()


def test_each_stack_runs_once_a_step_and_sources_once_a_row(bench: Bench) -> None:
    engine = bench.engine(max_rows=6)
    module, passes = engine.engine.model.module, {"encoder": [], "decoder": []}
    for name, stack in (("encoder", module.get_encoder()), ("decoder", module.get_decoder())):
        stack.register_forward_hook(lambda _m, _a, out, to=passes[name]: to.append(out[0].shape[1]))
    names = bench.load(engine, 16)
    sources = 0
    while engine.engine.scheduler.running or len(engine.engine.scheduler.waiting):
        before = {name: len(ran) for name, ran in passes.items()}
        engine.step()
        new = [chunk.sequence.source for chunk in engine.batches[-1].chunks]
        assert len(passes["decoder"]) == before["decoder"] + 1
        assert len(passes["encoder"]) == before["encoder"] + (1 if new else 0)
        sources += sum(end - first for first, end in new)
    assert sum(passes["encoder"]) == sources
    assert any(batch.chunks and batch.decodes.shape[1] for batch in engine.batches), "no step of both phases"
    told(engine, names)
    engine.close()


@pytest.mark.parametrize("settings", [{"max_rows": 3}, {"kv_tokens": 90}, {"max_step_tokens": 16}])
def test_rows_say_the_same_whatever_room_there_is(bench: Bench, calm: list[list[int]], settings: Any) -> None:
    engine = bench.engine(**settings)
    names = bench.load(engine, 16)
    engine.run()
    assert told(engine, names) == calm
    assert ("kv_tokens" in settings) == (engine.engine.scheduler.preemptions > 0)
    engine.close()


def test_a_step_without_memory_is_run_in_parts(
    bench: Bench, calm: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = bench.engine()
    launch, raised = engine.engine.runner.launch, []

    def some_raise(batch: Any) -> Any:
        if engine.engine.steps in (0, 3) and engine.engine.steps not in raised:
            raised.append(engine.engine.steps)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return launch(batch)

    monkeypatch.setattr(engine.engine.runner, "launch", some_raise)
    names = bench.load(engine, 16)
    engine.run()
    assert told(engine, names) == calm
    assert engine.engine.shortage.counts["split"] == 2
    engine.close()


def test_aborted_rows_give_everything_back(bench: Bench) -> None:
    engine = bench.engine(max_rows=5, kv_tokens=120)
    names, draw = bench.load(engine, 24), random.Random(0)
    for _ in range(12):
        engine.step()
        engine.engine.scheduler.abort(b"", draw.choice(names))
        engine.engine.check_integrity()
    engine.run()
    cache = engine.engine.scheduler.cache
    assert cache.tree.tokens in (0, 4), "a trained prefix at most is kept"
    assert cache.pool.free + cache.tree.tokens == cache.pool.capacity
    engine.close()


def test_samples_are_their_own_and_come_again(bench: Bench) -> None:
    engine = bench.engine()
    ids = [5, 9, 40, 17]
    wanted = {"max_tokens": 6, "ignore_eos": True, "temperature": 1.0, "seed": 4}
    first = [engine.add(ids, sample=sample, **wanted) for sample in range(4)]
    engine.run()
    again = [engine.add(ids, sample=sample, **wanted) for sample in range(4)]
    bench.load(engine, 8)
    engine.run()
    assert told(engine, first) == told(engine, again)
    assert len(set(map(tuple, told(engine, first)))) > 1
    engine.close()


@torch.inference_mode()
def test_log_probabilities_and_labels_are_the_eager_modules(bench: Bench) -> None:
    engine = bench.engine()
    model = engine.engine.model
    assert isinstance(model, PackedEncoderDecoder)
    ids, labels = [5, 9, 40, 17, 33], [[7, 12], [50], [61, 4, 8]]
    name = engine.add(ids, max_tokens=4, ignore_eos=True, logprobs=3)
    read = [engine.read([*ids, *label], scored=len(label)) for label in labels]
    engine.run()
    source = model.embedding(torch.tensor(ids))

    def expected(said: list[int]) -> torch.Tensor:
        return model.eager(source, model.embedding(torch.tensor([model.start, *said]))).log_softmax(-1)

    tokens = engine.done[name].tokens
    for place, (token, row) in enumerate(zip(tokens, engine.done[name].logprobs, strict=True)):
        assert row.chosen == pytest.approx(float(expected(tokens)[place, token]), abs=1e-4)
    for label, number in zip(labels, read, strict=True):
        said = [*model.begins[1:], *label]
        rows = expected(said)[len(said) - len(label) : len(said)]
        wanted = rows.gather(1, torch.tensor(label)[:, None])[:, 0].numpy()
        np.testing.assert_allclose(np.frombuffer(engine.done[number].scores, np.float32), wanted, atol=1e-4)
    engine.close()


def test_a_penalty_counts_what_the_decoder_said_alone(bench: Bench) -> None:
    engine, ids = bench.engine(), [5, 9, 40, 17, 33, 21]
    expected, certain = greedy_reference(bench.base, ids, 8, repetition_penalty=1.7)
    name = engine.add(ids, max_tokens=8, repetition_penalty=1.7)
    engine.run()
    wanted = [token for token in expected[:certain] if token != 2]
    assert engine.done[name].tokens[: len(wanted)] == wanted
    engine.close()


def test_what_can_never_run_is_refused_in_words(bench: Bench) -> None:
    engine = bench.engine(context_length=20)
    with pytest.raises(ContextTooLong, match="encoder takes 20"):
        engine.add([5] * 21, max_tokens=1)
    with pytest.raises(ContextTooLong, match="decoder has 20"):
        engine.add([5], max_tokens=21)
    root, virtual = engine.adapter(bench.folder / "prefix_tuning")
    with pytest.raises(ContextTooLong, match="trained prefix of 4"):
        engine.add([5], root, virtual, max_tokens=17, trained_prefix=True)
    with pytest.raises(InvalidRequest, match="no tokens"):
        engine.add([], root, virtual, max_tokens=4, trained_prefix=True)
    with pytest.raises(InvalidRequest, match="without heads"):
        engine.read([5, 6], root, virtual, head="sequence")
    name = engine.add([5] * 20, max_tokens=20, ignore_eos=True)
    engine.run()
    assert len(engine.done[name].tokens) == 20
    engine.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attention_backend": "triton"}, "use auto"),
        ({"kv_cache_dtype": "fp8"}, "leave it out"),
        ({"quantization": "fp8"}, "leave it out"),
    ],
)
def test_ways_for_decoders_alone_are_refused(bench: Bench, settings: Any, words: str) -> None:
    with pytest.raises(SelfTestFailed, match=words):
        bench.engine(**settings)


def test_a_model_that_runs_wrongly_is_not_served(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = PackedEncoderDecoder._attend

    def wrong(*given: Any, scaling: float, **named: Any) -> Any:
        return attend(*given, scaling=scaling * 1.5, **named)

    monkeypatch.setattr(PackedEncoderDecoder, "_attend", wrong)
    with pytest.raises(SelfTestFailed, match="differs from the eager module"):
        bench.engine()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("architecture", ["flan_t5", "bart"])
def test_half_precision_is_served_with_loras(architecture: str, dtype: str, tmp_path: Path) -> None:
    """T5 keeps some layers in float32 there. Weights are as transformers draws them: those of `make_base` are so far
    from zero that half precision's last bits change what is said."""
    base = tf.AutoModelForSeq2SeqLM.from_config(ARCHITECTURES[architecture]())
    base.save_pretrained(tmp_path / "base")
    make_adapter(base, "lora", tmp_path / "lora")
    engine = TestEngine(tmp_path / "base", dtype=dtype)
    assert {"lora", PAIR} <= engine.engine.spec.serves
    root, virtual = engine.adapter(tmp_path / "lora")
    asked = {"max_tokens": 4, "ignore_eos": True}
    names = [engine.add([5, 9, 40], root, virtual, **asked), engine.add([7, 8], **asked)]
    engine.run()
    assert all(told(engine, names))
    engine.close()


@pytest.mark.parametrize("side", ["source", "decoder"])
def test_loras_that_would_act_wrongly_are_not_served(bench: Bench, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    """The rows of the encoder's tokens, or of the decoder's, are given to the wrong adapters."""
    step = Deltas.step

    def wrong(deltas: Deltas, slots: Any, counts: Any, samples: Any, sources: Any = None) -> Any:
        right, turned = step(deltas, slots, counts, samples, sources), np.where(slots >= 0, -1, 0)
        other = step(deltas, turned, counts, samples, sources)
        if right is None or other is None:
            return right
        if side == "source":
            return replace(right, source=None if right.source is None else other.source)
        return replace(right, tokens=other.tokens)

    monkeypatch.setattr(Deltas, "step", wrong)
    engine = bench.engine()
    assert not {"lora", PAIR} & engine.engine.spec.serves
    with pytest.raises(InvalidAdapter, match="LoRA is not served"):
        engine.adapter(bench.folder / "lora")
    engine.close()


def test_what_a_generation_config_forces_comes_first_and_last(tmp_path: Path) -> None:
    make_base("bart", tmp_path)
    engine = TestEngine(tmp_path)
    free = engine.add([5, 9], max_tokens=5, ignore_eos=True)
    drawn = engine.add([5, 9], max_tokens=5, temperature=1.0, seed=1, logprobs=2)
    engine.run()
    assert engine.done[free].tokens[0] == engine.done[drawn].tokens[0] == 0
    assert len(engine.done[free].tokens) == 5, "nothing ends a row that ignores ends"
    assert all(np.isfinite([row.chosen, *row.top_logprobs]).all() for row in engine.done[drawn].logprobs)
    assert (len(engine.done[drawn].tokens), engine.done[drawn].reason) == (4, "length")
    engine.close()
