"""What is trained is what is served: the layout, the padding, PEFT's own forward pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from softmux.formats.layout import Layout, TransformersEncoder, lay_out
from softmux.formats.template import Template
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import bare_text, encode
from softmux.tuning.learned.methods import Learned, begin
from softmux.tuning.recipes.recipe import Recipe
from softmux.types import Manifest
from support.recipe_methods import METHODS

EXAMPLES = [
    Example("film", " yes"),
    Example("a gripping, beautiful film", " no, no"),
    Example("ab", " ok"),
]


def learn(method: str, base: Base) -> Learned:
    import tomllib

    recipe = Recipe.model_validate(
        {"task": "toy", "data": {"source": "capital"}, "train": {"steps": 1, "learning_rate": 1}}
        | {"method": tomllib.loads(METHODS[method])}
    )
    torch.manual_seed(1)
    return begin(recipe.method, base)


@pytest.mark.parametrize("method", METHODS)
def test_a_trained_row_begins_with_the_ids_that_serving_lays_out(method: str, base: Base) -> None:
    learned = learn(method, base)
    template = learned.layout.template
    manifest = Manifest(
        digest="sha256:0",
        method=learned.layout.method or "prompt_tuning",
        base_fingerprint="sha256:0",
        files=(),
        virtual_tokens=learned.layout.virtual_tokens,
        parameters=1,
        template="{p:2} The {film} {p:1} was" if template else None,
    )
    for example in EXAMPLES:
        row = encode(example, learned.layout, base.encoder, base.vocab_size, base.end_id)
        served = lay_out(manifest, TransformersEncoder(base.tokenizer), vocab_size=base.vocab_size, prompt=example.text)
        assert row.ids == served
        assert row.answer == (*base.tokenizer(example.answer, add_special_tokens=False)["input_ids"], 2)
        assert sum(token < 0 for token in row.ids) == learned.layout.virtual_tokens


@pytest.mark.parametrize("method", METHODS)
def test_a_rows_loss_does_not_depend_on_its_neighbours(method: str, base: Base) -> None:
    learned = learn(method, base)
    rows = [encode(example, learned.layout, base.encoder, base.vocab_size, base.end_id) for example in EXAMPLES]
    alone = [float(learned.losses([row]).mean().detach()) for row in rows]
    weights = [len(row.answer) for row in rows]
    mean = sum(loss * weight for loss, weight in zip(alone, weights, strict=True)) / sum(weights)
    assert float(learned.losses(rows).mean().detach()) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "p_tuning_template"])
def test_the_loss_is_that_of_peft_over_the_answer(method: str, base: Base) -> None:
    learned = learn(method, base)
    for example in EXAMPLES:
        row = encode(example, learned.layout, base.encoder, base.vocab_size, base.end_id)
        text = [token for token in row.ids if token >= 0]
        labels = torch.tensor([[-100] * len(text) + list(row.answer)])
        out = learned.peft(
            input_ids=torch.tensor([[*text, *row.answer]]), attention_mask=torch.ones_like(labels), labels=labels
        )
        mine = learned.losses([row]).mean()
        assert float(mine.detach()) == pytest.approx(float(out.loss.detach()), abs=1e-5)


def test_a_templates_vectors_stand_where_its_learned_tokens_are(base: Base, tmp_path: Path) -> None:
    learned = learn("p_tuning_template", base)
    learned.peft.save_pretrained(tmp_path, save_embedding_layers=False)
    saved = PeftModel.from_pretrained(base.model, tmp_path).prompt_encoder["default"].embedding.weight
    table = base.model.get_input_embeddings()
    row = encode(EXAMPLES[1], learned.layout, base.encoder, base.vocab_size, None)
    by_hand = torch.stack([saved[-1 - token] if token < 0 else table.weight[token] for token in row.ids])
    batch = learned.collate([row])
    inputs = learned.inputs(batch)
    assert torch.allclose(inputs["inputs_embeds"][0, : len(row.ids)], by_hand, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_the_learned_parameters_and_nothing_else(method: str, base: Base) -> None:
    learned = learn(method, base)
    rows = [encode(example, learned.layout, base.encoder, base.vocab_size, base.end_id) for example in EXAMPLES]
    learned.losses(rows).mean().backward()
    assert all(parameter.grad is None for parameter in base.model.parameters())
    grads = [parameter.grad for parameter in learned.parameters()]
    assert all(grad is not None and torch.isfinite(grad).all() for grad in grads)
    assert any(grad is not None and grad.abs().sum() > 0 for grad in grads)


def test_the_bare_words_of_a_template_are_its_text() -> None:
    assert bare_text(Template.parse("{p:4}The capital of {country}{p:4} is"), "Peru") == "The capital of Peru is"
    assert bare_text(Layout().template, "Peru") == "Peru"
