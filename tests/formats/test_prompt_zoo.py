"""Multitask prompts, CPT and cartridges: what PEFT gives the model is what is read, folded or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from formats_fixtures import edited
from zoo_fixtures import HIDDEN, make_base, retensored, save, spec_of, tune

from softmux.errors import InvalidAdapter
from softmux.formats.folder import read_adapter
from softmux.formats.methods.prompt import MultitaskConfig, fold_task
from softmux.formats.parts import PrefixPart, PromptPart
from softmux.formats.tensors import read_safetensors


def multitask(tasks: int, ranks: int = 2) -> Any:
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, num_tasks=tasks, num_ranks=ranks
    )
    return tune(make_base("llama"), config)


def cpt(epsilon: float = 0.1) -> Any:
    config = peft.CPTConfig(
        task_type="CAUSAL_LM",
        cpt_token_ids=[5, 6, 7, 8, 9],
        cpt_mask=[1] * 5,
        cpt_tokens_type_mask=[1, 2, 3, 4, 6],
        opt_projection_epsilon=epsilon,
        opt_projection_format_epsilon=0.3,
    )
    return tune(make_base("llama"), config)


def cartridge(tokens: int = 37, frozen: int = 1) -> Any:
    config = peft.CartridgeConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens, num_frozen_tokens=frozen)
    return tune(make_base("llama"), config)


def prompt(tuned: Any, **task: Any) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(tuned.get_prompt(batch_size=1, **task)[0])


def test_the_one_task_of_a_multitask_prompt_is_folded() -> None:
    tuned = multitask(1)
    adapter = read_adapter(save(tuned), spec_of("llama"))
    (part,) = adapter.parts
    assert isinstance(part, PromptPart)
    np.testing.assert_allclose(part.vectors, prompt(tuned, task_ids=torch.tensor([0])), rtol=0, atol=1e-7)
    assert (adapter.manifest.method, adapter.manifest.virtual_tokens) == ("prompt_tuning", 4)
    assert adapter.manifest.parameters == 4 * HIDDEN


@pytest.mark.parametrize("task", [0, 1, 2])
def test_any_task_of_several_is_folded_as_peft_does(task: int) -> None:
    tuned = multitask(3)
    tensors = read_safetensors(save(tuned)["adapter_model.safetensors"])
    config = MultitaskConfig(peft_type="MULTITASK_PROMPT_TUNING", num_virtual_tokens=4, num_tasks=3, num_ranks=2)
    folded = fold_task(config, tensors, HIDDEN, task)
    np.testing.assert_allclose(folded, prompt(tuned, task_ids=torch.tensor([task])), rtol=0, atol=1e-7)


def test_several_tasks_are_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidAdapter, match="softmux fold DIR --task-id") as refused:
        read_adapter(save(multitask(3)), spec_of("llama"))
    assert refused.value.param == "adapter_config.json: num_tasks"


def test_a_cpt_prompt_is_what_peft_loads() -> None:
    tuned = cpt()
    adapter = read_adapter(save(tuned), spec_of("llama"))
    (part,) = adapter.parts
    assert isinstance(part, PromptPart)
    np.testing.assert_array_equal(part.vectors, prompt(tuned))
    assert adapter.manifest.method == "cpt"


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 50.0])
def test_cpt_deltas_are_projected_as_peft_does(epsilon: float) -> None:
    tuned = cpt(epsilon)
    encoder = tuned.prompt_encoder["default"]
    raw = {name: value.clone() for name, value in encoder.state_dict().items()}
    files = save(tuned) | {"adapter_model.safetensors": safetensors.torch.save(raw)}
    (part,) = read_adapter(files, spec_of("llama")).parts
    assert isinstance(part, PromptPart)
    np.testing.assert_allclose(part.vectors, prompt(tuned), rtol=0, atol=1e-7)
    assert not np.array_equal(part.vectors, raw["embedding.weight"].numpy())


@pytest.mark.parametrize(("tokens", "frozen"), [(1, 0), (37, 1), (37, 37)])
def test_a_cartridge_is_kept_to_the_token(tokens: int, frozen: int) -> None:
    tuned = cartridge(tokens, frozen)
    spec = spec_of("llama")
    saved = read_adapter(save(tuned), spec)
    weights = {name: value.clone() for name, value in tuned.prompt_encoder["default"].state_dict().items()}
    unsaved = read_adapter(save(tuned) | {"adapter_model.safetensors": safetensors.torch.save(weights)}, spec)
    layers = tuned.get_prompt(batch_size=1).layers
    for adapter in (saved, unsaved):
        (part,) = adapter.parts
        assert isinstance(part, PrefixPart)
        assert part.keys.shape == part.values.shape == (2, tokens, 2, 8)
        for index, layer in enumerate(layers):
            np.testing.assert_array_equal(part.keys[index], layer.keys[0].transpose(0, 1).detach().numpy())
            np.testing.assert_array_equal(part.values[index], layer.values[0].transpose(0, 1).detach().numpy())
    assert (saved.manifest.method, saved.manifest.virtual_tokens) == ("cartridge", tokens)


@pytest.mark.parametrize(
    ("make", "change", "param"),
    [
        (lambda: multitask(1), {"num_ranks": 3}, "adapter_model.safetensors: prefix_task_cols"),
        (lambda: multitask(1), {"num_tasks": 0}, "adapter_config.json: num_tasks"),
        (cpt, {"cpt_tokens_type_mask": [1, 2]}, "adapter_config.json: cpt_tokens_type_mask"),
        (cpt, {"cpt_token_ids": [-1] * 5}, "adapter_config.json: cpt_token_ids"),
        (cpt, {"opt_projection_epsilon": "much"}, "adapter_config.json: opt_projection_epsilon"),
        (cpt, {"task_type": "SEQ_CLS"}, "adapter_config.json: task_type"),
        (cartridge, {"num_frozen_tokens": 38}, "adapter_config.json: num_frozen_tokens"),
        (cartridge, {"num_frozen_tokens": -1}, "adapter_config.json: num_frozen_tokens"),
        (cartridge, {"num_virtual_tokens": 36}, "adapter_model.safetensors: prompt_embeddings"),
        (cartridge, {"num_virtual_tokens": 5000}, "adapter_config.json: num_virtual_tokens"),
        (cartridge, {"token_dim": 64}, "adapter_config.json: token_dim"),
    ],
)
def test_malformed_ones_are_refused_by_name(make: Any, change: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidAdapter) as refused:
        read_adapter(edited(save(make()), **change), spec_of("llama"))
    assert refused.value.param == param


def test_a_multitask_fold_that_overflows_is_refused() -> None:
    files = save(multitask(1))
    big = {"prefix_task_cols": torch.full((1, 4, 2), 1e30), "prefix_task_rows": torch.full((1, 2, HIDDEN), 1e30)}
    with pytest.raises(InvalidAdapter, match="NaN or infinite"):
        read_adapter(retensored(files, **big), spec_of("llama"))
