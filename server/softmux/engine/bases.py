"""Which kind of base a checkpoint is, and the packed model that runs it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from softmux.engine.encoder import PackedEncoder
from softmux.engine.encoder_decoder import PackedEncoderDecoder
from softmux.engine.packed import PackedModel
from softmux.engine.quantised_loading import own_method
from softmux.errors import SelfTestFailed
from softmux.types import Family


def family_of(config: Any) -> Family:
    """By what the checkpoint says that it is; BERT's kind is an encoder, though transformers can make it generate."""
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder"
    names = " ".join(getattr(config, "architectures", None) or ())
    if "CausalLM" in names or "LMHead" in names or "ForConditionalGeneration" in names:
        return "decoder"
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    return "decoder" if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else "encoder"


def load_base(model: str, *, device: torch.device, dtype: torch.dtype, quantization: str = "auto") -> PackedModel:
    """As `PackedModel.load`, of the class that runs this kind of base. Raises `SelfTestFailed`."""
    try:
        config: Any = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:
        raise SelfTestFailed(f"--model {model} has no config that can be read: {error}") from error
    family = family_of(config)
    if family != "decoder" and quantization != "auto":
        raise SelfTestFailed(f"--quantization {quantization} is for decoders, and {model} is an {family}; leave it out")
    if family != "decoder" and own_method(config):
        raise SelfTestFailed(f"{model} is an {family} with quantised weights; softmux serves those in full: save it so")
    kind = {"decoder": PackedModel, "encoder": PackedEncoder, "encoder-decoder": PackedEncoderDecoder}[family]
    return kind.load(model, device=device, dtype=dtype, quantization=quantization)
