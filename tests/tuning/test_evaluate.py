from __future__ import annotations

from typing import Any

import pytest
import torch

from softmux.formats.layout import Layout
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import Row, encode
from softmux.tuning.evaluate import evaluate, generate, inputs_of, score
from softmux.tuning.learned.methods import begin, take_out
from softmux.tuning.recipes.recipe import Evaluate, Lora, PrefixTuning, PromptTuning

LABELS = ["n", " yes", " per", "y"]
TEST = [Example(f"{'so ' * (number % 4)}film {number}", LABELS[number % 4]) for number in range(9)]


def test_exact_is_the_whole_text_and_starts_with_its_beginning() -> None:
    texts, answers = [" Rome", " Rome, of course", "Rome"], [" Rome"] * 3
    assert score("exact", texts, answers) == {"exact": pytest.approx(1 / 3)}
    assert score("starts_with", texts, answers)["starts with"] == pytest.approx(2 / 3)


def test_field_f1_counts_pairs_and_broken_json_has_none() -> None:
    answers = [' {"A":"1","B":"2"}', ' {"A":"3"}', ' {"A":"4"}']
    texts = [' {"A":"1","B":"x","C":"2"}', ' {"A":"3"', " [1]"]
    values = score("json_fields", texts, answers)
    assert values["field F1"] == pytest.approx(2 * 1 / (3 + 4))
    assert values["valid JSON"] == pytest.approx(1 / 3)
    assert values["exact"] == 0
    assert score("json_fields", answers, answers) == {"field F1": 1, "valid JSON": 1, "exact": 1}


@torch.no_grad()
def plainly(base: Base, learned: Any, rows: list[Row], answer: tuple[int, ...]) -> list[float]:
    """The log-likelihood of an answer behind each row's input, in one forward of both."""
    found = []
    for row in rows:
        inputs = inputs_of(base, learned, [Row(row.ids, answer)])
        logits = base.model(**inputs, logits_to_keep=len(answer) + 1).logits[0, :-1].log_softmax(-1)
        found.append(float(logits.gather(1, torch.tensor(answer)[:, None]).sum()))
    return found


@pytest.mark.parametrize(
    "method",
    [
        None,
        PromptTuning(kind="prompt_tuning", virtual_tokens=3),
        PrefixTuning(kind="prefix_tuning", virtual_tokens=3, projection=False),
        Lora(kind="lora", rank=2, alpha=4),
    ],
)
def test_labels_and_texts_come_of_inputs_that_are_read_once(base: Base, method: Any) -> None:
    torch.manual_seed(1)
    learned = None if method is None else begin(method, base)
    layout = Layout() if learned is None else learned.layout
    rows = [encode(example, layout, base.encoder, base.vocab_size, None) for example in TEST]
    answers = [tuple(base.encoder.encode(label, add_special_tokens=False)) for label in LABELS]
    assert {len(answer) for answer in answers} == {1, 3, 4}
    by_label = torch.tensor([plainly(base, learned, rows, answer) for answer in answers])
    likeliest = [LABELS[i] for i in by_label.argmax(0).tolist()]
    right = sum(a == b.answer for a, b in zip(likeliest, TEST, strict=True)) / len(TEST)
    calls: list[int] = []
    hook = base.model.register_forward_pre_hook(lambda *_: calls.append(1))
    values = evaluate(base, learned, TEST, Evaluate(max_tokens=4), layout, LABELS).values
    hook.remove()
    assert values["label accuracy"] == pytest.approx(right)
    assert len(calls) <= 3 + 1 + 2 + 3, (
        "what all begin with, and two rows tried both ways; the inputs, the two longer labels' rest, three more tokens"
    )
    texts = generate(base, learned, rows, 4)
    assert values["exact"] == pytest.approx(sum(a == b.answer for a, b in zip(texts, TEST, strict=True)) / len(TEST))
    if learned is not None:
        take_out(learned)
