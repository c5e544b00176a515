"""What all inputs begin with is read once, and what is said and taught is what it is without; what a student is
measured against is made of the same states."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig

from softmux.formats.folder import load_folder, parse_adapter
from softmux.formats.layout import Layout
from softmux.inspection.base import describe
from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.distilling.agreement import agreement
from softmux.tuning.evaluate import answered, answering, continued
from softmux.tuning.training.board import counted
from softmux.tuning.voices.shared_prompt import shared_prompt
from softmux.tuning.voices.speaker import Speaker
from softmux.tuning.voices.voice import Voice
from support.loras import make_pair
from support.models import make_adapter, make_base
from support.tuning_jobs import fresh

LONG = tuple(range(10, 40))
ENDS = ((5, 6), (7,), (8, 9, 41, 42, 43, 44, 45), (7, 3, 5))


def base_of(model: Any) -> Base:
    return Base(model, None, "tiny", torch.device("cpu"), (2,))


def shared(teacher: Voice, inputs: list[tuple[int, ...]], max_tokens: int) -> Speaker:
    return shared_prompt(teacher.base, teacher, [Row(ids, ()) for ids in inputs], max_tokens)


def alone(teacher: Voice, inputs: list[tuple[int, ...]], max_tokens: int) -> list[Row]:
    return [teacher.taught([ids], max_tokens)[0] for ids in inputs]


def tokens_run(model: Any) -> list[int]:
    """Of each forward from now on, how many tokens went through the layers, all rows together."""
    found: list[int] = []

    def look(_module: object, _given: object, output: torch.Tensor) -> None:
        found.append(output.shape[0] * output.shape[1])

    model.get_input_embeddings().register_forward_hook(look)
    return found


def same(found: list[Row], expected: list[Row]) -> None:
    for own, wanted in zip(found, expected, strict=True):
        assert own == wanted, "the same input and answer"
        assert own.taught is not None
        assert wanted.taught is not None
        assert len(own.taught) == len(own.answer)
        assert abs(own.taught - wanted.taught).max() < 1e-4 * abs(wanted.taught).max()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "phi3", "granite", "qwen3"])
@pytest.mark.parametrize("vectors", [False, True], ids=["text", "vectors"])
def test_answers_and_states_are_those_of_the_whole_input(name: str, vectors: bool, tmp_path: Path) -> None:
    base = base_of(make_base(name, tmp_path))
    teacher = Voice(base)
    if vectors:
        torch.manual_seed(5)
        teacher = Voice(base, vectors=torch.randn(9, 48) * 0.3)
    begin = (1, *(tuple(-1 - i for i in range(9)) if vectors else LONG))
    inputs = [(*begin, *end) for end in ENDS]
    speaker = shared(teacher, inputs, 5)
    assert speaker.prefix == len(begin)
    same(teacher.taught(inputs, 5), alone(teacher, inputs, 5))


def test_the_longest_rows_are_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read last, each batch would be given more memory than any before it has left."""
    monkeypatch.setattr("softmux.tuning.evaluate.BATCH", 2)
    base = base_of(make_base("llama", tmp_path))
    rows = [Row(tuple(range(3 + i, 3 + i + length)), ()) for i, length in enumerate((4, 9, 2, 7, 8, 3))]
    ran = tokens_run(base.model)
    found = continued(base, None, rows, 1)
    assert ran == [2 * 9, 2 * 7, 2 * 3]
    assert found == [continued(base, None, [row], 1)[0] for row in rows]


def test_what_is_shared_is_run_once(tmp_path: Path) -> None:
    """The prompt; two rows, tried as a whole and behind it; then what the rows have of their own."""
    base = base_of(make_base("llama", tmp_path))
    inputs = [(*LONG, *end) for end in ENDS]
    ran = tokens_run(base.model)
    Voice(base).taught(inputs, 1)
    assert ran == [len(LONG), 2 * (len(LONG) + 7), 2 * 7, 4 * 7]


@torch.no_grad()
def test_learned_tokens_are_run_once_where_a_task_is_measured(tmp_path: Path) -> None:
    base = base_of(make_base("llama", tmp_path))
    learned = fresh("prompt", base, 3)
    rows = [Row((-1, -2, -3, -4, *end), (9, 10 + i)[: 1 + i % 2]) for i, end in enumerate(ENDS)]
    one_by_one = [continued(base, learned, [row], 4)[0] for row in rows]
    logits = [found for row in rows for _, found in answering(base, learned, [row], 1)]
    ran = tokens_run(base.model)
    assert continued(base, learned, rows, 4) == one_by_one
    assert ran[:4] == [4, 2 * (4 + 7), 2 * 7, 4 * 7]
    ran.clear()
    for some, found in answering(base, learned, rows, 3):
        assert torch.allclose(found, torch.cat([logits[rows.index(row)] for row in some]), atol=1e-4)
    assert ran == [4, 2 * (4 + 7), 2 * 7, 3 * (7 + 1), 2 + 1]


def test_an_input_that_is_all_of_another_keeps_a_token_of_its_own(tmp_path: Path) -> None:
    base = base_of(make_base("llama", tmp_path))
    teacher, inputs = Voice(base), [LONG, (*LONG, 5, 6), LONG]
    speaker = shared(teacher, inputs, 3)
    assert speaker.prefix == len(LONG) - 1
    same(teacher.taught(inputs, 3), alone(teacher, inputs, 3))
    apart = [(5, 6), (7,)]
    assert shared(teacher, apart, 3) is teacher
    same(teacher.taught(apart, 3), alone(teacher, apart, 3))


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "pair"])
def test_an_adapter_shares_what_comes_behind_its_own_keys(method: str, tmp_path: Path) -> None:
    """Its LoRA is in what is read once, as in what every row reads itself."""
    model = make_base("llama", tmp_path / "base")
    if method == "pair":
        make_pair(model, "prefix_tuning", tmp_path / "adapter")
    else:
        make_adapter(model, method, tmp_path / "adapter")
    adapter = parse_adapter(load_folder(tmp_path / "adapter"), describe(str(tmp_path / "base"), fingerprints=True))
    voice = Voice.of(base_of(model), Layout.of(adapter.manifest), adapter.parts)
    learned = tuple(-1 - i for i in range(adapter.manifest.virtual_tokens))
    inputs = [(*learned, *LONG[:9], *end) for end in ENDS]
    with voice.speaking():
        assert shared(voice, inputs, 5).prefix == len(learned) + 9
    expected = alone(voice, inputs, 5)
    same(voice.taught(inputs, 5), expected)
    assert voice.answers(inputs, 5) == [row.answer for row in expected]
    apart = [(*learned, *end) for end in ENDS]
    assert shared(voice, apart, 5).prefix == len(learned)


@pytest.mark.parametrize("name", ["mistral", "gemma2", "gemma3"])
def test_it_is_shared_where_every_window_reaches_over_all(name: str, tmp_path: Path) -> None:
    """The window is of 12 tokens. Where it does not reach, every row is what it is alone and as a whole."""
    base = base_of(make_base(name, tmp_path))
    teacher = Voice(base)
    for begin, is_shared in ((LONG[:2], True), (LONG[:3], False), (LONG, False)):
        inputs = [(*begin, *end) for end in ENDS]
        assert (shared(teacher, inputs, 3) is not teacher) == is_shared
        same(teacher.taught(inputs, 3), alone(teacher, inputs, 3))


def test_a_base_whose_positions_turn_by_length_does_not_share() -> None:
    """Rotary embeddings that are stretched past so many tokens: a prompt's keys depend on what comes after it."""
    torch.manual_seed(0)
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    config = LlamaConfig(
        vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=33, rope_parameters=rope, initializer_range=0.3,
    )  # fmt: skip
    teacher = Voice(base_of(AutoModelForCausalLM.from_config(config).eval()))
    assert shared(teacher, [(*LONG, *end) for end in ENDS], 3) is teacher
    assert shared(teacher, [(*LONG[:20], *end) for end in ENDS], 3).prefix == 20


@pytest.mark.parametrize("name", ["llama", "gemma2", "granite"])
@torch.no_grad()
def test_agreement_is_with_the_teachers_whole_distribution(name: str, tmp_path: Path) -> None:
    """Whatever the base does behind its output head: against both computed plainly, one row at a time."""
    base = base_of(make_base(name, tmp_path))
    taught = Voice(base).taught([(*LONG[:3], *end) for end in ENDS], 2)
    rows = [Row(end, row.answer, row.taught) for end, row in zip(ENDS, taught, strict=True)]
    found = agreement(base, None, rows, 2)

    def words(ids: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        logits: torch.Tensor = base.model(input_ids=torch.tensor([[*ids, *answer]])).logits
        return logits[0, len(ids) - 1 : -1].log_softmax(-1)

    theirs = torch.cat([words(row.ids, row.answer) for row in taught])
    own = torch.cat([words(row.ids, row.answer) for row in rows])
    assert found.divergence == pytest.approx(float((theirs.exp() * (theirs - own)).sum(-1).mean()), rel=1e-4)
    assert found.divergence > 1e-3
    assert found.same_token == float((theirs.argmax(-1) == own.argmax(-1)).double().mean())
    said = answered(base, None, [Row(end, ()) for end in ENDS], 2)
    assert found.same_answer == sum(a.answer == b.answer for a, b in zip(said, rows, strict=True)) / len(rows)
    themselves = agreement(base, None, taught, 2)
    assert abs(themselves.divergence) < 1e-6
    assert (themselves.same_token, themselves.same_answer) == (1.0, 1.0)


def test_how_many_are_done_is_shown_on_a_terminal_alone() -> None:
    for terminal in (True, False):
        shown = io.StringIO()
        with counted(Console(file=shown, force_terminal=terminal, width=80), "answered", 70) as see:
            see(64)
            see(6)
        assert ("70/70" in shown.getvalue()) == terminal
        assert terminal or not shown.getvalue()
