"""Rows with a grammar, in the batch beside others: what they say fits it, and nobody else notices."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, cast

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer

from softmux.bench.peers.schemas import random_schema
from softmux.engine.grammars import Grammars
from softmux.engine.masks import allowed
from softmux.engine.sampling import Choice, sample
from softmux.errors import InvalidRequest
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import Grammar, SamplingParams
from support.encoder_decoders import ARCHITECTURES, make_base
from support.engines import TestEngine
from support.learned import vectors_for
from support.served import make_model
from support.tokenizers_made import byte_level, save

Make = Callable[..., TestEngine]
EOS = 2
DIGITS = Grammar("regex", "[0-9]{3}-[0-9]{4}")
SCHEMA = Grammar("json_schema", json.dumps(random_schema(4)))


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Tokenizer]:
    """A tiny Llama whose tokenizer spells all bytes."""
    folder = tmp_path_factory.mktemp("spelling")
    return make_model(folder), folder, Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture
def make(spelling: tuple[Any, Path, Tokenizer]) -> Iterator[Make]:
    made: list[TestEngine] = []

    def make_one(overlap: bool = False, **settings: Any) -> TestEngine:
        made.append(TestEngine(spelling[1], **settings))
        made[-1].engine._overlap = overlap
        return made[-1]

    yield make_one
    for engine in made:
        engine.engine.check_integrity()
        engine.close()


def text(spelling: tuple[Any, Path, Tokenizer], tokens: list[int]) -> str:
    return str(spelling[2].decode(tokens, skip_special_tokens=False))


FREE: list[dict[str, Any]] = [
    {"max_tokens": 24, "ignore_eos": True},
    {"max_tokens": 24, "ignore_eos": True, "temperature": 1.2, "seed": 3},
    {"max_tokens": 24, "ignore_eos": True, "repetition_penalty": 1.3},
    {"max_tokens": 24, "ignore_eos": True, "logprobs": 2},
]
GUIDED: list[dict[str, Any]] = [
    {"max_tokens": 200, "grammar": SCHEMA},
    {"max_tokens": 200, "grammar": SCHEMA, "temperature": 1.0, "seed": 1},
    {"max_tokens": 200, "grammar": DIGITS, "temperature": 2.0, "seed": 2, "top_p": 0.7},
    {"max_tokens": 200, "grammar": Grammar("choice", '["yes", "no", "it is not known"]')},
    {"max_tokens": 200, "grammar": Grammar("grammar", 'start: "(" start ")" | "x"'), "temperature": 1.0, "seed": 5},
    {"max_tokens": 200, "grammar": Grammar("grammar", "root ::= [a-c]+ [0-9]"), "seed": 4, "temperature": 1.0},
]


@pytest.mark.parametrize("overlap", [False, True])
def test_every_kind_beside_soft_prompts_and_free_rows(
    make: Make, spelling: tuple[Any, Path, Tokenizer], overlap: bool
) -> None:
    vectors = vectors_for(spelling[0], 4)

    def run(guided: bool) -> tuple[TestEngine, list[str], list[str]]:
        engine = make(overlap, max_rows=16)
        root = engine.learned("tuned", vectors)
        prompts: list[tuple[list[int], RootKey | None]] = [([5, 6, 7], None), ([-1, -2, -3, -4, 9, 10], root)]
        free, bound = [], []
        for at, (tokens, key) in enumerate(prompts * 2):
            free.append(engine.add(tokens, key, **FREE[at]))
        for at, sampling in enumerate(GUIDED if guided else ()):
            tokens, key = prompts[at % 2]
            bound.append(engine.add([*tokens, 11 + at], key, **sampling))
        engine.run()
        return engine, free, bound

    alone, expected, _ = run(guided=False)
    mixed, free, bound = run(guided=True)
    for one, other in zip(expected, free, strict=True):
        assert mixed.done[other].tokens == alone.done[one].tokens, "a free row is the same beside rows with grammars"
    done = [mixed.done[name] for name in bound]
    assert [one.error for one in done] == [None] * len(done)
    assert {one.reason for one in done[:4]} | {done[5].reason} == {"stop"}
    said = [text(spelling, one.tokens) for one in done]
    for document in said[:2]:
        assert Draft202012Validator(random_schema(4)).is_valid(json.loads(document)), document
    assert re.fullmatch(DIGITS.text, said[2])
    assert said[3] in ("yes", "no", "it is not known")
    assert re.fullmatch(r"\(*x\)*", said[4])
    assert done[4].reason == "length" or said[4].count("(") == said[4].count(")")
    assert re.fullmatch("[a-c]+[0-9]", said[5])
    assert mixed.engine.runner.masks.rows > 0
    steps = len(mixed.batches)
    assert steps <= max(len(one.tokens) for one in [*done, *mixed.done.values()]) + 4, "no row sat a step out"


@pytest.mark.parametrize("overlap", [False, True])
def test_a_preempted_row_goes_on_in_its_grammar(
    make: Make, spelling: tuple[Any, Path, Tokenizer], overlap: bool
) -> None:
    wide, tight = make(overlap), make(overlap, kv_tokens=140, max_rows=8)
    runs = []
    for engine in (wide, tight):
        names = [engine.add([5 + at, 6, 7], max_tokens=60, grammar=SCHEMA, temperature=1.0, seed=at) for at in range(6)]
        engine.run()
        runs.append([engine.done[name] for name in names])
    assert tight.engine.scheduler.preemptions > 0
    assert wide.engine.scheduler.preemptions == 0
    assert [one.tokens for one in runs[0]] == [one.tokens for one in runs[1]]
    for one in runs[1]:
        if one.reason == "stop":
            assert Draft202012Validator(random_schema(4)).is_valid(json.loads(text(spelling, one.tokens)))


@pytest.mark.parametrize("overlap", [False, True])
def test_a_step_that_runs_in_parts_changes_no_row(make: Make, monkeypatch: pytest.MonkeyPatch, overlap: bool) -> None:
    def run(engine: TestEngine) -> list[list[int]]:
        names = [engine.add([5 + at, 6], max_tokens=40, grammar=SCHEMA, temperature=1.0, seed=at) for at in range(6)]
        engine.run()
        assert [engine.done[name].error for name in names] == [None] * 6
        return [engine.done[name].tokens for name in names]

    expected = run(make(overlap))
    engine = make(overlap)
    runner, launch, count = engine.engine.runner, engine.engine.runner.launch, 0

    def short_of_memory(batch: Any) -> Any:
        nonlocal count
        count += 1
        if len(batch) > 3 and count % 3 == 0:
            runner.masks.begin(batch)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launch(batch)

    monkeypatch.setattr(runner, "launch", short_of_memory)
    assert run(engine) == expected
    assert engine.engine.shortage.counts["split"] > 2


@pytest.mark.parametrize("architecture", ["flan_t5", "bart"])
def test_an_encoder_decoders_rows_follow_theirs(
    tmp_path: Path, spelling: tuple[Any, Path, Tokenizer], monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """BART's decoder begins with a token that its generation config forces, whatever the grammar."""
    config = ARCHITECTURES[architecture]()
    config.vocab_size = 420
    monkeypatch.setitem(ARCHITECTURES, architecture, lambda: config)
    make_base(architecture, tmp_path)
    save(byte_level(), tmp_path)
    engine = TestEngine(tmp_path)
    free = engine.add([5, 6, 7], max_tokens=8, ignore_eos=True)
    bound = [engine.add([5, 6, 7 + at], max_tokens=40, grammar=DIGITS, temperature=1.0, seed=at) for at in range(3)]
    engine.run()
    assert engine.done[free].error is None
    for name in bound:
        assert engine.done[name].error is None
        assert re.fullmatch(DIGITS.text, str(spelling[2].decode(engine.done[name].tokens)))
    engine.close()


def test_grammars_that_are_being_compiled_are_not_let_go() -> None:
    begin, compiled = Event(), list[str]()

    class Compiler:
        mask_words = 1

        def compile(self, grammar: Grammar) -> Any:
            begin.wait(30)
            compiled.append(grammar.text)
            return self

        def deep_copy(self) -> Any:
            return self

    grammars = Grammars(lambda: cast(Any, Compiler()), keep=2)
    every = [Grammar("regex", str(number)) for number in range(5)]
    for _ in range(3):
        assert not any(grammars.expect("one", grammar) for grammar in every)
    begin.set()
    for grammar in every:
        grammars.guide("one", grammar)
    assert sorted(compiled) == ["0", "1", "2", "3", "4"], "each once"
    grammars.guide("other", every[0])
    assert len(grammars) == 2
    assert (grammars.hits, grammars.misses) == (0, 6)
    grammars.close()


def test_samples_of_one_prompt_each_follow_their_own(make: Make, spelling: tuple[Any, Path, Tokenizer]) -> None:
    engine = make()
    names = [
        engine.add([5, 6], max_tokens=90, grammar=DIGITS, temperature=3.0, seed=7, sample=sample) for sample in range(4)
    ]
    engine.run()
    said = [text(spelling, engine.done[name].tokens) for name in names]
    assert len(set(said)) > 1
    assert all(re.fullmatch(DIGITS.text, one) for one in said)
    grammars = engine.engine.grammars
    assert (grammars.misses, grammars.hits, len(grammars)) == (1, 3, 1), "compiled once"


def test_a_cut_row_has_reached_its_length(make: Make) -> None:
    engine = make()
    name = engine.add([5, 6], max_tokens=3, grammar=DIGITS)
    engine.run()
    assert (engine.done[name].reason, len(engine.done[name].tokens)) == ("length", 3)


def test_log_probabilities_are_the_models_own(make: Make) -> None:
    engine = make()
    bound = engine.add([5, 6], max_tokens=1, grammar=Grammar("choice", '["yes"]'), logprobs=5)
    free = engine.add([5, 6], max_tokens=1, logprobs=5)
    engine.run()
    [one], [other] = engine.done[bound].logprobs, engine.done[free].logprobs
    assert (one.top_ids, one.top_logprobs) == (other.top_ids, other.top_logprobs), "before the mask"
    assert one.chosen < 0


def test_what_contradicts_a_grammar_is_refused(make: Make) -> None:
    engine = make()
    for wish in ({"ignore_eos": True}, {"min_tokens": 2}):
        with pytest.raises(InvalidRequest) as refusal:
            engine.add([5, 6], grammar=DIGITS, **wish)
        assert refusal.value.param in wish
    with pytest.raises(InvalidRequest) as refusal:
        engine.add([5, 6], grammar=Grammar("regex", "(", param="response_format"))
    assert refusal.value.param == "response_format"
    engine.run()


@pytest.mark.parametrize("overlap", [False, True])
def test_a_row_that_gets_stuck_fails_alone(make: Make, overlap: bool) -> None:
    engine = make(overlap)
    good, free = engine.add([5, 6], grammar=DIGITS, max_tokens=90), engine.add([5, 6], max_tokens=8, ignore_eos=True)
    bad = engine.add([5, 7], grammar=Grammar("grammar", 'start: a{100000}\na: "x"', "response_format"), max_tokens=400)
    engine.run()
    error = engine.done[bad].error
    assert isinstance(error, InvalidRequest)
    assert error.param == "response_format"
    assert "grammar" in error.message
    assert engine.done[good].reason == "stop"
    assert engine.done[free].reason == "length"


def test_a_model_of_more_logits_than_tokens_says_no_other(make: Make, spelling: tuple[Any, Path, Tokenizer]) -> None:
    engine = make()
    assert engine.engine.spec.vocab_size > spelling[2].get_vocab_size()
    beyond = spelling[2].get_vocab_size()
    wish = {"logit_bias": ((beyond, 100.0), (EOS, 100.0), (1, 100.0)), "max_tokens": 90, "grammar": DIGITS}
    name = engine.add([5, 6], **wish)
    engine.run()
    assert re.fullmatch(DIGITS.text, text(spelling, engine.done[name].tokens)), "nor an end before it is whole"


def test_masks_are_bits_of_tokens() -> None:
    masks = np.zeros((2, 2), np.int32)
    masks[0, 0] = np.int32(np.uint32(1 << 31 | 1 << 5).view(np.int32))
    masks[1, 1] = 1 << 3
    found = allowed(torch.from_numpy(masks).view(torch.uint8), 70)
    assert [np.flatnonzero(row).tolist() for row in found.numpy()] == [[5, 31], [35]]
    assert found.shape == (2, 70)
    sequence = Sequence("a", b"", RootKey("t", None, "", ""), [1], SamplingParams(temperature=1.0, seed=1), 0.0)
    logits = torch.zeros(3, 70)
    none = torch.zeros(1, 70, dtype=torch.bool)
    chosen = sample(logits, [Choice(sequence, 0)] * 3, (2,), ([0, 2], torch.cat([found[1:], none])))
    assert chosen.tokens.tolist()[::2] == [35, -1], "a row that may say nothing says so"
    assert logits[1].isfinite().all()
