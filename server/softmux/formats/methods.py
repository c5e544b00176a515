"""The methods served, a row of `METHODS` each: PEFT's name, ours, its config's schema, how its tensors are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from softmux.errors import InvalidAdapter
from softmux.formats import encoders
from softmux.formats.config import (
    CONFIG_FILE,
    PrefixTuningConfig,
    PromptLearningConfig,
    PromptTuningConfig,
    PTuningConfig,
    invalid_field,
)
from softmux.formats.json_file import shown
from softmux.formats.parts import Float32Array, Parts, PrefixPart, PromptPart
from softmux.formats.tensors import Tensor, expect, invalid_tensor
from softmux.types import Method, ModelSpec

SAVED = "prompt_embeddings"
"""The one tensor PEFT saves, whatever the method: what the trained encoder computes."""

_FOLD_TOLERANCE = 1e-3

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class MethodFormat:
    """`read(config, tensors, spec)` gives the parts, or raises `InvalidAdapter` naming the field or tensor."""

    method: Method
    config: type[PromptLearningConfig]
    read: Callable[[Any, Tensors, ModelSpec], Parts]


def _read_prompt_tuning(config: PromptTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    dim = _hidden_size(config, spec)
    return (PromptPart(expect(tensors, {SAVED: (config.num_virtual_tokens, dim)})[SAVED]),)


def _read_p_tuning(config: PTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    dim = _hidden_size(config, spec)
    k, hidden, layers = config.num_virtual_tokens, config.encoder_hidden_size or dim, config.encoder_num_layers
    if config.encoder_reparameterization_type == "LSTM":
        shapes = encoders.lstm_shapes(k, dim, hidden, layers)
        return (PromptPart(_encoded(tensors, (k, dim), shapes, lambda weights: encoders.fold_lstm(weights, layers))),)
    return (PromptPart(_encoded(tensors, (k, dim), encoders.mlp_shapes(k, dim, hidden), encoders.fold_mlp)),)


def _read_prefix_tuning(config: PrefixTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    layers, kv = len(spec.layers), spec.layers[0]
    if any(layer != kv for layer in spec.layers):
        raise InvalidAdapter(
            f"{spec.model_id} has layers of different key and value shapes, and a prefix is served only where all are "
            "equal; use prompt tuning or P-tuning on this base.",
            param=f"{CONFIG_FILE}: peft_type",
        )
    dim = kv.kv_heads * kv.head_dim
    if config.num_attention_heads not in (None, kv.kv_heads):
        raise invalid_field(
            "num_attention_heads",
            f"a prefix for {config.num_attention_heads} key-value heads, but {spec.model_id} has {kv.kv_heads}; "
            "train it on this base.",
        )
    if config.token_dim not in (None, dim):
        raise invalid_field(
            "token_dim",
            f"keys of {config.token_dim} numbers a token, but {spec.model_id} has {kv.kv_heads} heads of "
            f"{kv.head_dim}, {dim} in all; train it on this base.",
        )
    k, width = config.num_virtual_tokens, layers * 2 * dim
    if config.prefix_projection:
        shapes = encoders.projection_shapes(k, dim, config.encoder_hidden_size or dim, layers)
        flat = _encoded(tensors, (k, width), shapes, encoders.fold_projection)
    else:
        flat = expect(tensors, {SAVED: (k, width)})[SAVED]
    # PEFT views a row as [layers · 2, kv_heads, head_dim]: the keys of layer l at 2l, its values at 2l + 1.
    stacked = flat.reshape(k, layers, 2, kv.kv_heads, kv.head_dim).transpose(2, 1, 0, 3, 4)
    return (PrefixPart(np.ascontiguousarray(stacked[0]), np.ascontiguousarray(stacked[1])),)


def _hidden_size(config: PromptLearningConfig, spec: ModelSpec) -> int:
    if config.token_dim not in (None, spec.hidden_size):
        raise invalid_field(
            "token_dim",
            f"vectors of {config.token_dim} numbers, but {spec.model_id} has a hidden size of {spec.hidden_size}; "
            "train it on this base.",
        )
    return spec.hidden_size


def _encoded(
    tensors: Tensors,
    saved_shape: tuple[int, int],
    encoder_shapes: encoders.Shapes,
    fold: Callable[[encoders.Weights], Float32Array],
) -> Float32Array:
    """What the prompt encoder computes: as saved, or folded from its weights; where both are there they must agree."""
    encoder: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = _name_in_encoder(name, encoder_shapes)
        if inner is None:
            rest[name] = tensor
        elif inner in encoder:
            raise invalid_tensor(name, f"it and “{shown(encoder[inner].name)}” are the same weight; send it once.")
        else:
            encoder[inner] = tensor
    if not encoder:
        return expect(rest, {SAVED: saved_shape})[SAVED]
    saved = expect(rest, {SAVED: saved_shape})[SAVED] if rest else None
    folded = fold(expect(encoder, encoder_shapes))
    if not np.isfinite(folded).all():
        raise invalid_tensor(
            "embedding.weight", "what the encoder computes from it is NaN or infinite; train it again."
        )
    if saved is None:
        return folded
    if not np.allclose(saved, folded, rtol=_FOLD_TOLERANCE, atol=_FOLD_TOLERANCE):
        raise invalid_tensor(
            SAVED, "it differs from what the encoder's weights beside it compute; send one of the two."
        )
    return saved


def _name_in_encoder(name: str, encoder_shapes: encoders.Shapes) -> str | None:
    """What the encoder itself calls the tensor that PEFT's model calls `prompt_encoder.<adapter's name>.…`."""
    model, _, inside = name.partition("prompt_encoder.")
    candidates = [name, name.removeprefix("default.")]
    if not model:
        candidates += [inside, inside.partition(".")[2]]
    return next((candidate for candidate in candidates if candidate in encoder_shapes), None)


METHODS: Mapping[str, MethodFormat] = MappingProxyType(
    {
        "PROMPT_TUNING": MethodFormat("prompt_tuning", PromptTuningConfig, _read_prompt_tuning),
        "P_TUNING": MethodFormat("p_tuning", PTuningConfig, _read_p_tuning),
        "PREFIX_TUNING": MethodFormat("prefix_tuning", PrefixTuningConfig, _read_prefix_tuning),
    }
)
