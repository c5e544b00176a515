"""Trained rows of tokens, alone and beside a LoRA: the tables they make are those that PEFT uses."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import peft
import pytest
import torch
from formats_fixtures import edited
from zoo_fixtures import HIDDEN, make_base, retensored, save, spec_of, tune

from softmux.errors import InvalidAdapter
from softmux.formats.folder import read_adapter
from softmux.formats.parts import LoraPart, Parts, TokenRowsPart

IDS = torch.tensor([[3, 1, 5, 9, 3]])
DELTA = "base_model__model__model__embed_tokens__trainable_tokens_delta"


def alone(base: Any, ids: list[int]) -> Any:
    return tune(base, peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=ids))


def beside(base: Any, ids: Any) -> Any:
    return tune(base, peft.LoraConfig(task_type="CAUSAL_LM", r=2, trainable_token_indices=ids))


@torch.no_grad()
def logits_of(base: Any, parts: Parts) -> torch.Tensor:
    """The base with the parts written into its weights: rows into its tables, low-rank updates into its layers."""
    for part in parts:
        if isinstance(part, TokenRowsPart):
            rows, ids = torch.from_numpy(part.vectors), list(part.ids)
            if part.at in ("input", "both"):
                base.get_input_embeddings().weight[ids] = rows
            if part.at in ("output", "both"):
                base.get_output_embeddings().weight[ids] = rows
        elif isinstance(part, LoraPart):
            for path, layer in part.layers.items():
                base.get_submodule(path).weight += layer.scaling * torch.from_numpy(layer.b @ layer.a)
    return base(IDS).logits


@pytest.mark.parametrize(
    ("model", "make", "sides"),
    [
        ("llama", lambda base: alone(base, [3, 5]), ["input"]),
        ("llama-tied", lambda base: alone(base, [5, 3]), ["both"]),
        ("llama", lambda base: beside(base, [3, 5]), ["input"]),
        ("llama-tied", lambda base: beside(base, [3, 5]), ["both"]),
        ("llama", lambda base: beside(base, {"embed_tokens": [3], "lm_head": [5, 7]}), ["output", "input"]),
        ("llama-tied", lambda base: beside(base, {"embed_tokens": [3, 9], "lm_head": [3, 9]}), ["both"]),
    ],
)
def test_the_tables_are_pefts(model: str, make: Any, sides: list[str]) -> None:
    base = make_base(model)
    tuned = make(copy.deepcopy(base))
    adapter = read_adapter(save(tuned), spec_of(model))
    assert [part.at for part in adapter.parts if isinstance(part, TokenRowsPart)] == sides
    with torch.no_grad():
        theirs = tuned(input_ids=IDS).logits
        plain = base(IDS).logits
    np.testing.assert_allclose(logits_of(base, adapter.parts), theirs, rtol=0, atol=2e-6)
    assert not torch.allclose(plain, theirs, atol=1e-2)
    has_lora = any(isinstance(part, LoraPart) for part in adapter.parts)
    assert adapter.manifest.method == ("lora" if has_lora else "trainable_tokens")
    assert adapter.manifest.virtual_tokens == 0


@pytest.mark.parametrize(
    ("change", "tensors", "param"),
    [
        ({"token_indices": [3]}, {}, "adapter_model.safetensors: base_model.model.model.embed_tokens"),
        ({"token_indices": [3, 3]}, {}, "adapter_config.json: token_indices"),
        ({"token_indices": []}, {}, "adapter_config.json: token_indices"),
        ({"token_indices": [3, 97]}, {}, "adapter_config.json: token_indices"),
        ({"token_indices": [3, -1]}, {}, "adapter_config.json: token_indices"),
        ({"token_indices": "35"}, {}, "adapter_config.json: token_indices"),
        ({}, {DELTA: torch.zeros(2, HIDDEN + 1)}, "adapter_model.safetensors: base_model.model.model.embed_tokens"),
        ({}, {DELTA: None, "surprise": torch.zeros(1)}, "adapter_model.safetensors: surprise"),
        ({}, {DELTA: None}, "adapter_model.safetensors: ….trainable_tokens_delta"),
        (
            {},
            {"base_model__model__other__trainable_tokens_delta": torch.zeros(2, HIDDEN)},
            "adapter_model.safetensors: base_model.model.other.trainable_tokens_delta",
        ),
        ({"task_type": "SEQ_CLS"}, {}, "adapter_config.json: task_type"),
    ],
)
def test_malformed_ones_are_refused_by_name(change: dict[str, Any], tensors: dict[str, Any], param: str) -> None:
    files = retensored(edited(save(alone(make_base("llama"), [3, 5])), **change), **tensors)
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(files, spec_of("llama"))
    assert str(refused.value.param).startswith(param)


def test_rows_that_differ_where_the_table_is_one_are_refused() -> None:
    files = save(beside(make_base("llama-tied"), {"embed_tokens": [3, 9], "lm_head": [3]}))
    with pytest.raises(InvalidAdapter, match="tie them"):
        read_adapter(files, spec_of("llama-tied"))


def test_rows_without_their_tokens_are_refused() -> None:
    files = edited(save(beside(make_base("llama"), [3, 5])), trainable_token_indices=None)
    with pytest.raises(InvalidAdapter, match="names no tokens"):
        read_adapter(files, spec_of("llama"))
