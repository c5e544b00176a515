"""Each row's token: from the right distribution, by its own wishes alone, and again the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

from softmux.engine.sampling import Choice, sample, uniform
from softmux.errors import InvalidRequest
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence
from softmux.types import SamplingParams
from support.engines import TestEngine
from support.learned import eager_greedy, eager_logits, vectors_for

Make = Callable[..., TestEngine]
VOCABULARY = 12
EOS = 2


def choice(
    sampling: SamplingParams, position: int = 0, number: int = 0, tokens: tuple[int, ...] = (1,), prompt: int = 1
) -> Choice:
    sequence = Sequence("s", b"", RootKey("a", None, "f", "d"), list(tokens[:prompt]), sampling, 0.0, sample=number)
    sequence.said.extend(tokens[prompt:])
    return Choice(sequence, position)


def draws(logits: torch.Tensor, count: int, **wishes: Any) -> torch.Tensor:
    """How often each token was chosen, over `count` positions of one seed."""
    sampling = SamplingParams(seed=11, max_tokens=count, **wishes)
    chosen = sample(logits.repeat(count, 1), [choice(sampling, position) for position in range(count)], (EOS,))
    return torch.bincount(chosen.tokens, minlength=logits.shape[-1])


def warped(logits: torch.Tensor, **wishes: Any) -> torch.Tensor:
    """The distribution that transformers' own warpers leave."""
    warpers: list[Any] = [tf.TemperatureLogitsWarper(wishes.get("temperature", 1.0))]
    if wishes.get("top_k"):
        warpers.append(tf.TopKLogitsWarper(wishes["top_k"]))
    if wishes.get("top_p", 1.0) < 1:
        warpers.append(tf.TopPLogitsWarper(wishes["top_p"]))
    if wishes.get("min_p"):
        warpers.append(tf.MinPLogitsWarper(wishes["min_p"]))
    scores = logits[None].clone()
    for warper in warpers:
        scores = warper(torch.zeros((1, 1), dtype=torch.int64), scores)
    return scores[0].softmax(-1)


@pytest.mark.parametrize(
    "wishes",
    [
        {"temperature": 1.0},
        {"temperature": 0.5},
        {"temperature": 2.5},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 1.0, "top_p": 0.6},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 1.7, "top_k": 8, "top_p": 0.8, "min_p": 0.1},
    ],
    ids=str,
)
def test_tokens_come_from_the_distribution_that_was_asked_for(wishes: dict[str, Any]) -> None:
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(5)) * 1.5
    expected = warped(logits, **wishes)
    count = 4000
    found = draws(logits, count, **wishes)
    assert not found[expected == 0].any(), "a token was drawn that the filters leave out"
    kept = expected > 0
    chi_square = (((found - count * expected) ** 2)[kept] / (count * expected[kept])).sum()
    assert chi_square < 45, "11 degrees of freedom: beyond 45 lies a hundred-thousandth"


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-9, 1e-5])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    logits = torch.tensor([1e4, -3.0, 1e4 + 1, 0.0])
    assert draws(logits, 50, temperature=temperature).tolist() == [0, 0, 50, 0]


@pytest.mark.parametrize("wishes", [{"top_p": 0.0}, {"top_k": 1}, {"min_p": 1.0}], ids=str)
def test_the_narrowest_filters_leave_the_likeliest(wishes: dict[str, Any]) -> None:
    logits = torch.tensor([0.0, 0.1, 2.0, 1.9])
    assert draws(logits, 50, temperature=5.0, **wishes).tolist() == [0, 0, 50, 0]


def test_a_row_draws_the_same_whatever_its_neighbours_ask_for() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((31, VOCABULARY), generator=generator)
    plain = SamplingParams(temperature=1.0, seed=3)
    neighbours = [
        SamplingParams(temperature=0.7, top_k=3, seed=1),
        SamplingParams(temperature=1.2, top_p=0.5, seed=2),
        SamplingParams(),
        SamplingParams(temperature=2.0, min_p=0.3, seed=3, logprobs=2),
        SamplingParams(logit_bias=((4, 50.0),)),
    ]
    for position in range(40):
        alone = sample(logits[:1].clone(), [choice(plain, position)], (EOS,)).tokens
        mixed = [choice(plain, position), *(choice(neighbours[i % 5], position) for i in range(30))]
        assert sample(logits.clone(), mixed, (EOS,)).tokens[0] == alone[0]


def test_a_row_that_is_not_finite_says_so_and_leaves_the_others_alone() -> None:
    logits = torch.randn((6, VOCABULARY), generator=torch.Generator().manual_seed(2))
    wishes = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=1),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.9, seed=1, logprobs=3),
        SamplingParams(repetition_penalty=1.3),
        SamplingParams(logprobs=0),
        SamplingParams(temperature=1.0, min_p=0.2, seed=5),
    ]
    whole = sample(logits.clone(), [choice(w) for w in wishes], (EOS,)).tokens
    for bad in range(6):
        for poison in (float("nan"), float("inf"), float("-inf")):
            broken = logits.clone()
            broken[bad, slice(None) if poison < 0 else 3] = poison
            found = sample(broken, [choice(w) for w in wishes], (EOS,)).tokens
            assert found[bad] == -1
            rest = torch.arange(6) != bad
            assert torch.equal(found[rest], whole[rest])


def test_the_random_numbers_are_even_and_a_function_of_seed_sample_and_position() -> None:
    values = torch.tensor(
        [uniform(s, n, p) for s in range(20) for n in range(10) for p in range(50)], dtype=torch.float64
    )
    assert len(set(values.tolist())) == len(values)
    assert 0 <= values.min() < values.max() < 1
    counts = torch.histc(values, 20, 0, 1)
    assert ((counts - 500) ** 2 / 500).sum() < 60
    assert uniform(7, 1, 2) == uniform(7, 1, 2) != uniform(7, 2, 1)
    assert uniform(-1, 0, 0) == uniform((1 << 64) - 1, 0, 0)


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.3])
def test_repetition_penalty_is_transformers_own(penalty: float) -> None:
    generator = torch.Generator().manual_seed(8)
    processor = tf.RepetitionPenaltyLogitsProcessor(penalty)
    for _ in range(50):
        logits = torch.randn((1, VOCABULARY), generator=generator) * 2
        tokens = tuple(torch.randint(0, VOCABULARY, (6,), generator=generator).tolist())
        expected = processor(torch.tensor([tokens]), logits.clone()).argmax(-1)
        row = choice(SamplingParams(repetition_penalty=penalty), tokens=tokens, prompt=4)
        assert sample(logits.clone(), [row], (EOS,)).tokens[0] == expected[0]


def test_frequency_and_presence_penalties_count_the_output_alone() -> None:
    logits = torch.tensor([[0.0, 3.0, 2.9, 2.2, 1.0]])
    output = (1, 3, 1, 1)  # the prompt holds 1 and 1

    def greedy(**wishes: float) -> int:
        row = choice(SamplingParams(**wishes), tokens=output, prompt=2)
        return int(sample(logits.clone(), [row], ()).tokens[0])

    assert greedy(frequency_penalty=0.04) == 1  # twice in the output: 2.92
    assert greedy(frequency_penalty=0.06) == 2  # 2.88
    assert greedy(presence_penalty=0.09) == 1
    assert greedy(presence_penalty=0.11) == 2
    assert greedy(presence_penalty=-1.0) == 1
    assert greedy(frequency_penalty=-0.5) == 1


@pytest.fixture
def prompt() -> list[int]:
    return [10, 11, 12, 13, 14]


def test_the_same_seed_says_the_same_alone_among_thirty_others_and_after_preemption(
    make_engine: Make, prompt: list[int]
) -> None:
    wishes = {"temperature": 1.3, "seed": 5, "max_tokens": 16, "ignore_eos": True}
    alone = make_engine()
    single = alone.add(prompt, **wishes)
    alone.run()
    crowd = make_engine()
    tight = make_engine(kv_tokens=64, max_rows=8)
    for engine in (crowd, tight):
        odd = [
            engine.add([20 + i, 30], temperature=0.5 + i / 10, seed=i, max_tokens=12, ignore_eos=True, **filters)
            for i in range(15)
            for filters in ({"top_k": 5}, {"top_p": 0.9, "min_p": 0.01})
        ]
        name = engine.add(prompt, **wishes)
        engine.run()
        assert engine.done[name].tokens == alone.done[single].tokens
        assert all(len(engine.done[other].tokens) == 12 for other in odd)
    assert tight.engine.scheduler.preemptions > 0
    second = alone.add(prompt, sample=1, **wishes)
    unseeded = [alone.add(prompt, temperature=1.3, max_tokens=16, ignore_eos=True) for _ in range(2)]
    alone.run()
    told = {tuple(alone.done[name].tokens) for name in (single, second, *unseeded)}
    assert len(told) == 4, "another sample, and no seed, say something else"


def test_bias_forces_and_bans(make_engine: Make, base: Any, prompt: list[int]) -> None:
    engine = make_engine()
    likeliest = eager_greedy(base, prompt, 1)[0]
    forced = engine.add(prompt, logit_bias=((7, 100.0),), max_tokens=4)
    banned = engine.add(prompt, logit_bias=((likeliest, -100.0),), max_tokens=8, ignore_eos=True)
    engine.run()
    assert engine.done[forced].tokens == [7] * 4
    assert likeliest not in engine.done[banned].tokens
    for token in (-1, engine.engine.spec.vocab_size):
        with pytest.raises(InvalidRequest) as refusal:
            engine.add(prompt, logit_bias=((token, 1.0),))
        assert refusal.value.param == "logit_bias"
    with pytest.raises(InvalidRequest):
        engine.add(prompt, max_tokens=0)


def test_the_end_comes_when_it_may(make_engine: Make, prompt: list[int]) -> None:
    engine = make_engine()
    toward_end = {"logit_bias": ((EOS, 100.0),), "max_tokens": 6}
    at_once = engine.add(prompt, **toward_end)
    later = engine.add(prompt, min_tokens=3, **toward_end)
    never = engine.add(prompt, ignore_eos=True, min_tokens=2, **toward_end)
    whole = engine.add(prompt, min_tokens=6, **toward_end)
    engine.run()
    assert (engine.done[at_once].tokens, engine.done[at_once].reason) == ([], "stop")
    assert (len(engine.done[later].tokens), engine.done[later].reason) == (3, "stop")
    assert EOS not in engine.done[later].tokens
    assert (engine.done[never].tokens, engine.done[never].reason) == ([EOS] * 6, "length")
    assert (len(engine.done[whole].tokens), engine.done[whole].reason) == (6, "length")


@pytest.mark.parametrize("overlap", [False, True])
def test_penalties_through_the_engine_are_transformers_own(
    make_engine: Make, base: Any, prompt: list[int], overlap: bool
) -> None:
    engine = make_engine()
    engine.engine._overlap = overlap
    name = engine.add(prompt, repetition_penalty=1.4, max_tokens=12, ignore_eos=True)
    engine.run()
    processor = tf.RepetitionPenaltyLogitsProcessor(1.4)
    at = list(prompt)
    for _ in range(12):
        at.append(int(processor(torch.tensor([at]), eager_logits(base, at)[-1:].clone()).argmax()))
    assert engine.done[name].tokens == at[len(prompt) :]


def test_log_probabilities_are_the_eager_models(make_engine: Make, base: Any, prompt: list[int]) -> None:
    engine = make_engine()
    vectors = vectors_for(base, 4)
    root = engine.learned("tuned", vectors)
    tokens = [-1, -2, -3, -4, *prompt]
    names = [
        engine.text(tokens, root, logprobs=count, max_tokens=5, ignore_eos=True, temperature=1.5, seed=count, top_k=9)
        for count in (0, 3, 20)
    ]
    without = engine.text(tokens, root, max_tokens=5)
    engine.run()
    assert engine.done[without].logprobs == []
    for name, count in zip(names, (0, 3, 20), strict=True):
        done = engine.done[name]
        expected = eager_logits(base, [*tokens, *done.tokens], vectors).log_softmax(-1)[len(tokens) - 1 : -1]
        assert len(done.logprobs) == 5
        for row, token, told in zip(expected, done.tokens, done.logprobs, strict=True):
            assert told.chosen == pytest.approx(float(row[token]), abs=1e-4)
            best = row.topk(count) if count else None
            assert told.top_ids == (tuple(best.indices.tolist()) if best else ())
            assert told.top_logprobs == pytest.approx(best.values.tolist() if best else [], abs=1e-4)
