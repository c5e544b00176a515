"""Learned keys and values: prefix tuning (2101.00190), P-tuning v2 (2110.07602), CARTRIDGE (2506.06266)."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, StrictBool, StrictStr

from softmux.errors import InvalidAdapter
from softmux.formats import encoders
from softmux.formats.config import CONFIG_FILE, Count, PromptLearningConfig, invalid_field
from softmux.formats.methods.encoded import SAVED, Tensors, encoded
from softmux.formats.parts import Float32Array, Parts, PrefixPart
from softmux.formats.peft_types import takes_prefix
from softmux.formats.tensors import expect
from softmux.types import LayerKV, ModelSpec


class KeyValueConfig(PromptLearningConfig):
    """`token_dim` is kv_heads · head_dim and `num_attention_heads` is kv_heads, as PEFT sets them for GQA too."""


class PrefixTuningConfig(KeyValueConfig):
    init_weights: StrictStr | None = None
    encoder_hidden_size: Count | None = None
    prefix_projection: StrictBool = False


class CartridgeConfig(KeyValueConfig):
    """`num_frozen_tokens`: how many leading tokens training left as they were. They are served like the others."""

    num_frozen_tokens: Annotated[int, Field(strict=True, ge=0, le=1 << 24)] = 1


def read_prefix_tuning(config: PrefixTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    kv = _checked(config, spec)
    k, layers, dim = config.num_virtual_tokens, _saved_layers(config, spec), kv.kv_heads * kv.head_dim
    if not config.prefix_projection:
        return (_prefix(expect(tensors, {SAVED: (k, layers * 2 * dim)})[SAVED], spec),)
    shapes = encoders.projection_shapes(k, dim, config.encoder_hidden_size or dim, layers)
    return (_prefix(encoded(tensors, (k, layers * 2 * dim), shapes, encoders.fold_projection), spec),)


def read_cartridge(config: CartridgeConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    """All tokens, to the one: a cartridge is never cut to pages. Its keys came from a cache, so they are rotated."""
    kv = _checked(config, spec)
    k, frozen, width = (
        config.num_virtual_tokens,
        config.num_frozen_tokens,
        len(spec.layers) * 2 * kv.kv_heads * kv.head_dim,
    )
    if frozen > k:
        raise invalid_field("num_frozen_tokens", f"{frozen} of {k} tokens can't be frozen; it is at most {k}.")
    shapes: encoders.Shapes = {"frozen_embedding": (frozen, width)} if frozen else {}
    shapes["trainable_embedding"] = (k - frozen, width)
    return (_prefix(encoded(tensors, (k, width), shapes, encoders.fold_cartridge), spec),)


def _checked(config: KeyValueConfig, spec: ModelSpec) -> LayerKV:
    """The shape that every layer's keys and values have. Raises `InvalidAdapter` where the config's is another."""
    if not takes_prefix(spec.model_type):
        raise InvalidAdapter(
            f"{spec.model_id} ({spec.model_type}) takes no keys and values from outside, in PEFT neither; use prompt "
            "tuning or P-tuning on this base.",
            param=f"{CONFIG_FILE}: peft_type",
        )
    kv = spec.layers[0]
    if any(layer != kv for layer in spec.layers):
        raise InvalidAdapter(
            f"{spec.model_id} has layers of different key and value shapes, and a prefix is served only where all are "
            "equal; use prompt tuning or P-tuning on this base.",
            param=f"{CONFIG_FILE}: peft_type",
        )
    if config.num_attention_heads not in (None, kv.kv_heads):
        raise invalid_field(
            "num_attention_heads",
            f"a prefix for {config.num_attention_heads} key-value heads, but {spec.model_id} has {kv.kv_heads}; "
            "train it on this base.",
        )
    dim = kv.kv_heads * kv.head_dim
    if config.token_dim not in (None, dim):
        raise invalid_field(
            "token_dim",
            f"keys of {config.token_dim} numbers a token, but {spec.model_id} has {kv.kv_heads} heads of "
            f"{kv.head_dim}, {dim} in all; train it on this base.",
        )
    return kv


def _saved_layers(config: PrefixTuningConfig, spec: ModelSpec) -> int:
    """How many layers' keys and values PEFT saves: of an encoder-decoder as many as it took its encoder to have."""
    if spec.family != "encoder-decoder":
        return len(spec.layers)
    if config.num_transformer_submodules == 1:
        raise invalid_field(
            "num_transformer_submodules",
            "PEFT itself can't run a prefix of one submodule on an encoder-decoder; train it with 2, its default.",
        )
    layers = config.num_layers or len(spec.layers)
    if layers < len(spec.layers):
        raise invalid_field(
            "num_layers",
            f"a prefix for {layers} layers, but {spec.model_id}'s decoder has {len(spec.layers)}; train it on this "
            "base.",
        )
    return layers


def _prefix(flat: Float32Array, spec: ModelSpec) -> PrefixPart:
    """PEFT views a row as [layers · 2, kv_heads, head_dim]: the keys of layer l at 2l, its values at 2l + 1.

    For an encoder-decoder it lays that out twice, one behind the other, and deals it out in fours: keys and values of
    a layer, and two more that its cross-attention does not keep. So layer l has what was saved as layer 2l, counted
    around.
    """
    kv = spec.layers[0]
    stacked = flat.reshape(len(flat), -1, 2, kv.kv_heads, kv.head_dim).transpose(2, 1, 0, 3, 4)
    if spec.family == "encoder-decoder":
        stacked = stacked[:, [2 * layer % stacked.shape[1] for layer in range(len(spec.layers))]]
    return PrefixPart(np.ascontiguousarray(stacked[0]), np.ascontiguousarray(stacked[1]))
