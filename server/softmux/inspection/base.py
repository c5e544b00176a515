"""A base model described without its weights: its modules are built on the meta device, from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from softmux.engine.anatomy import embeddings, linear_shapes
from softmux.engine.bases import family_of
from softmux.engine.fingerprint import base_fingerprint, tokenizer_fingerprint
from softmux.engine.poolers import base_head
from softmux.engine.serves import SERVES
from softmux.errors import InvalidRequest
from softmux.types import Family, LayerKV, ModelSpec

_LOADS_AS: Mapping[Family, Any] = MappingProxyType(
    {"decoder": AutoModelForCausalLM, "encoder": AutoModel, "encoder-decoder": AutoModelForSeq2SeqLM}
)
UNKNOWN = "unknown"
"""A fingerprint that can't be told, as the files that it is made of are not there."""


def describe(model: str, *, fingerprints: bool = False, quantization: str | None = None) -> ModelSpec:
    """The spec that an engine on `model` (a folder with a config.json, or a hub id) would give, in bfloat16.

    `fingerprints` reads the weights and the tokenizer for them, where they are there; `quantization`: of a server with
    that `--quantization`. Raises `InvalidRequest`.
    """
    try:
        config: Any = AutoConfig.from_pretrained(model, trust_remote_code=False)
        family = family_of(config)
        kind: Any = _LOADS_AS[family]
        with torch.device("meta"):
            module = kind.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise InvalidRequest(
            f"{model} can't be described: {error}. Give a folder with a model's config.json, or a hub id.",
            param="--model",
        ) from error
    text = config.get_text_config()
    given, output, tied = embeddings(module)
    folder = Path(model)
    has_weights = fingerprints and any(folder.glob("*.safetensors"))
    return ModelSpec(
        model_id=folder.resolve().name if folder.is_dir() else model,
        architecture=type(module).__name__,
        dtype="bfloat16",
        hidden_size=int(module.get_input_embeddings().weight.shape[1]),
        vocab_size=int(text.vocab_size),
        context_length=int(getattr(text, "max_position_embeddings", None) or 1 << 20),
        base_fingerprint=base_fingerprint(folder, quantization) if has_weights else UNKNOWN,
        tokenizer_fingerprint=tokenizer_fingerprint(folder) if fingerprints and folder.is_dir() else UNKNOWN,
        layers=(_layer(text),) * _layers(text),
        eos_token_ids=(),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        device="meta",
        embedding_norm=0.0,
        quantization=quantization,
        model_type=str(text.model_type),
        family=family,
        serves=SERVES[family],
        linears=linear_shapes(module),
        input_embedding=given,
        output_embedding=output,
        tied_embeddings=bool(tied or (output and getattr(text, "tie_word_embeddings", False))),
        base_head=base_head(text),
    )


def _layers(config: Any) -> int:
    """Those that keep keys and values: of an encoder-decoder its decoder's."""
    named = (getattr(config, name, None) for name in ("num_decoder_layers", "decoder_layers"))
    return int(next((count for count in named if count), None) or config.num_hidden_layers)


def _layer(config: Any) -> LayerKV:
    heads = int(getattr(config, "decoder_attention_heads", None) or config.num_attention_heads)
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    head_dim = width or int(config.hidden_size) // heads
    return LayerKV(int(kv_heads), int(head_dim))
