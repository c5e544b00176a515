"""Which kind of base a checkpoint is, and the packed model that runs it."""

from __future__ import annotations

from pathlib import Path
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
from softmux.engine.parallel.cut import refusal, refuse
from softmux.engine.parallel.ranks import Ranks
from softmux.engine.parallel.sharded import ShardedModel
from softmux.engine.quantised_loading import own_method
from softmux.errors import SelfTestFailed
from softmux.settings import Settings
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


def _config_of(model: str) -> Any:
    is_path = model.startswith(("/", "./", "../", "~")) or model.count("/") > 1
    if is_path and not Path(model).is_dir():
        raise SelfTestFailed(
            f"--model {model}: there is no such folder; give one in Hugging Face's layout, or a hub id"
        )
    try:
        return AutoConfig.from_pretrained(model, trust_remote_code=False)
    except Exception as error:
        raise SelfTestFailed(f"--model {model} has no config that can be read: {error}") from error


def load_base(model: str, *, device: torch.device, dtype: torch.dtype, quantization: str = "auto") -> PackedModel:
    """As `PackedModel.load`, of the class that runs this kind of base. Raises `SelfTestFailed`."""
    config = _config_of(model)
    family = family_of(config)
    if family != "decoder" and quantization != "auto":
        raise SelfTestFailed(f"--quantization {quantization} is for decoders, and {model} is an {family}; leave it out")
    if family != "decoder" and own_method(config):
        raise SelfTestFailed(f"{model} is an {family} with quantised weights; softmux serves those in full: save it so")
    kind = {"decoder": PackedModel, "encoder": PackedEncoder, "encoder-decoder": PackedEncoderDecoder}[family]
    return kind.load(model, device=device, dtype=dtype, quantization=quantization)


def check_sharded(settings: Settings) -> None:
    """Raises `SelfTestFailed`, in words, where the base can't be dealt out to `tensor_parallel` processes: by its
    config, before any of them is started."""
    if settings.quantization != "auto":
        raise SelfTestFailed(
            f"--quantization {settings.quantization} runs in one process: leave it or --tensor-parallel out"
        )
    config = _config_of(settings.model)
    if own_method(config):
        raise SelfTestFailed(
            f"{settings.model} has quantised weights, which run in one process: leave --tensor-parallel out"
        )
    name = (getattr(config, "architectures", None) or [type(config).__name__])[0]
    refuse(refusal(name, config, settings.tensor_parallel))


def load_sharded(settings: Settings, ranks: Ranks, dtype: torch.dtype) -> ShardedModel:
    """This rank's part of the base. Raises `SelfTestFailed`."""
    if ranks.device.type == "cpu" and not settings.threads:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.size))
    return ShardedModel.read(settings.model, ranks, dtype=dtype)
