"""Folders that PEFT itself wrote are read as PEFT would use them, and its encoders are folded as it folds them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from formats_fixtures import CONFIGS, MODELS, edited, make_peft, make_spec

from softmux.errors import InvalidAdapter
from softmux.formats.folder import read_adapter
from softmux.formats.methods import METHODS
from softmux.formats.parts import Parts, PromptPart

Saved = Callable[[str, str], dict[str, bytes]]

ENCODED = ("mlp", "mlp-default", "lstm", "projection")


def peft_prompt(tuned: peft.PeftModel) -> list[np.ndarray]:
    """What PEFT gives the model: `[vectors [k, hidden]]`, or `[keys, values]`, each `[layers, k, heads, head_dim]`."""
    with torch.no_grad():
        prompt = tuned.get_prompt(batch_size=1)
    if isinstance(prompt, torch.Tensor):
        return [prompt[0].numpy()]
    layers = prompt.layers
    return [
        torch.stack([layer.keys[0].transpose(0, 1) for layer in layers]).numpy(),
        torch.stack([layer.values[0].transpose(0, 1) for layer in layers]).numpy(),
    ]


def arrays(parts: Parts) -> list[np.ndarray]:
    (part,) = parts
    return [part.vectors] if isinstance(part, PromptPart) else [part.keys, part.values]


def encoder_file(tuned: peft.PeftModel, prefix: str, saved: bool = False) -> bytes:
    encoder = tuned.prompt_encoder["default"]
    tensors = {prefix + name: value.contiguous() for name, value in encoder.state_dict().items()}
    if saved:
        tensors["prompt_embeddings"] = tuned.get_prompt_embedding_to_save("default")
    return safetensors.torch.save(tensors)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("model", MODELS)
def test_saved_folder_is_what_peft_uses(saved: Saved, model: str, config: str) -> None:
    tuned, spec = make_peft(model, config)
    adapter = read_adapter(saved(model, config), spec)
    for ours, theirs in zip(arrays(adapter.parts), peft_prompt(tuned), strict=True):
        assert ours.dtype == np.float32
        # torch's LSTM itself differs in the last bits with and without gradients (PEFT saves with them).
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7 if config == "lstm" else 0)
    assert adapter.manifest.virtual_tokens == tuned.peft_config["default"].num_virtual_tokens
    assert adapter.manifest.parameters == sum(array.size for array in arrays(adapter.parts))
    assert adapter.warnings == ()
    assert len(adapter.checks) >= 4


@pytest.mark.parametrize(
    "prefix", ["", "default.", "prompt_encoder.", "prompt_encoder.default.", "prompt_encoder.mine."]
)
@pytest.mark.parametrize("config", ENCODED)
@pytest.mark.parametrize("model", MODELS)
def test_encoder_weights_are_folded_as_peft_does(saved: Saved, model: str, config: str, prefix: str) -> None:
    tuned, spec = make_peft(model, config)
    files = saved(model, config) | {"adapter_model.safetensors": encoder_file(tuned, prefix)}
    for ours, theirs in zip(arrays(read_adapter(files, spec).parts), peft_prompt(tuned), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_large_encoder_weights_saturate_like_torch(saved: Saved) -> None:
    tuned, spec = make_peft("gqa", "lstm")
    with torch.no_grad():
        for weight in tuned.prompt_encoder["default"].lstm_head.parameters():
            weight.mul_(40)
    files = saved("gqa", "lstm") | {"adapter_model.safetensors": encoder_file(tuned, "")}
    (ours,), (theirs,) = arrays(read_adapter(files, spec).parts), peft_prompt(tuned)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("config", ENCODED)
def test_saved_and_encoder_together_must_agree(saved: Saved, config: str) -> None:
    tuned, spec = make_peft("gqa", config)
    files = saved("gqa", config) | {"adapter_model.safetensors": encoder_file(tuned, "", saved=True)}
    alone = read_adapter(saved("gqa", config), spec)
    for ours, theirs in zip(arrays(read_adapter(files, spec).parts), arrays(alone.parts), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-7)
    with torch.no_grad():
        list(tuned.prompt_encoder["default"].parameters())[-1].add_(1)
    other = safetensors.torch.load(encoder_file(tuned, ""))
    other["prompt_embeddings"] = safetensors.torch.load(files["adapter_model.safetensors"])["prompt_embeddings"]
    files["adapter_model.safetensors"] = safetensors.torch.save(other)
    with pytest.raises(InvalidAdapter, match="differs") as refused:
        read_adapter(files, spec)
    assert refused.value.param == "adapter_model.safetensors: prompt_embeddings"


@pytest.mark.parametrize(
    "name",
    ["surprise", "evil.embedding.weight", "x.prompt_encoder.embedding.weight", "prompt_encoder.prompt_embeddings"],
)
def test_names_that_peft_does_not_use_are_refused(saved: Saved, name: str) -> None:
    tuned, spec = make_peft("gqa", "mlp")
    tensors = safetensors.torch.load(encoder_file(tuned, "prompt_encoder.default.")) | {name: torch.zeros(5, 32)}
    with pytest.raises(InvalidAdapter, match="not expected") as refused:
        read_adapter(saved("gqa", "mlp") | {"adapter_model.safetensors": safetensors.torch.save(tensors)}, spec)
    assert refused.value.param == f"adapter_model.safetensors: {name}"


def test_a_weight_under_two_names_is_refused(saved: Saved) -> None:
    tuned, spec = make_peft("gqa", "mlp")
    tensors = safetensors.torch.load(encoder_file(tuned, "")) | {"default.embedding.weight": torch.zeros(5, 32)}
    with pytest.raises(InvalidAdapter, match="same weight"):
        read_adapter(saved("gqa", "mlp") | {"adapter_model.safetensors": safetensors.torch.save(tensors)}, spec)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("config", ["prompt", "prefix"])
def test_half_precision_is_widened_exactly(saved: Saved, config: str, dtype: torch.dtype) -> None:
    files = saved("gqa", config)
    tensors = safetensors.torch.load(files["adapter_model.safetensors"])
    halved = {name: value.to(dtype) for name, value in tensors.items()}
    widened = {name: value.to(torch.float32) for name, value in halved.items()}
    spec = MODELS["gqa"][1]
    ours = read_adapter(files | {"adapter_model.safetensors": safetensors.torch.save(halved)}, spec)
    theirs = read_adapter(files | {"adapter_model.safetensors": safetensors.torch.save(widened)}, spec)
    for left, right in zip(arrays(ours.parts), arrays(theirs.parts), strict=True):
        assert np.array_equal(left, right)


def test_every_value_of_bfloat16_and_float16_is_widened_as_torch_does() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        every = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)
        finite = every[every.isfinite()]
        width = 32
        rows = finite[: len(finite) // width * width].reshape(-1, width)
        files = {
            "adapter_config.json": b'{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": %d}' % len(rows),
            "adapter_model.safetensors": safetensors.torch.save({"prompt_embeddings": rows.contiguous()}),
        }
        (ours,) = arrays(read_adapter(files, make_spec(context_length=1 << 20)).parts)
        assert np.array_equal(ours, rows.to(torch.float32).numpy())


@pytest.mark.parametrize(
    ("peft_type", "config"),
    [
        ("PROMPT_TUNING", peft.PromptTuningConfig),
        ("P_TUNING", peft.PromptEncoderConfig),
        ("PREFIX_TUNING", peft.PrefixTuningConfig),
    ],
)
def test_schema_has_every_field_that_peft_writes(peft_type: str, config: Any) -> None:
    written = {field.name for field in dataclasses.fields(config)}
    assert written <= set(METHODS[peft_type].config.model_fields)


@pytest.mark.parametrize("config", CONFIGS)
def test_config_of_an_older_peft_is_read(saved: Saved, config: str) -> None:
    """PEFT 0.5 wrote none of these fields."""
    later = ("peft_version", "revision", "modules_to_save", "tokenizer_kwargs", "init_weights")
    files = edited(saved("gqa", config), **dict.fromkeys(later, ...))
    assert read_adapter(files, MODELS["gqa"][1]).manifest.method == METHODS_OF[config]


METHODS_OF = {
    "prompt": "prompt_tuning",
    "mlp": "p_tuning",
    "mlp-default": "p_tuning",
    "lstm": "p_tuning",
    "prefix": "prefix_tuning",
    "projection": "prefix_tuning",
}
