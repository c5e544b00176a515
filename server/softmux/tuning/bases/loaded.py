"""A model that its user has loaded: what it must be, to be a base."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from softmux.engine.bases import family_of
from softmux.errors import InvalidRequest

try:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error


def check_loaded(model: Any) -> None:
    """Raises `InvalidRequest` for what is no model of transformers' alone, for one that was loaded without what says
    words, and for an encoder that is not in float32, which its fresh head is in. Decoders are taken in any precision:
    they run in their own."""
    within = isinstance(model, torch.nn.Module) and any(isinstance(part, BaseTunerLayer) for part in model.modules())
    if within or isinstance(model, PeftModel):
        raise InvalidRequest(
            "The model has an adapter of PEFT's around it or within it: give the bare one, as it was before "
            "get_peft_model, or as a LoRA's unload() gives it back.",
            param="model",
        )
    if not isinstance(model, PreTrainedModel):
        raise InvalidRequest(
            f"A {type(model).__name__} is no base: give a folder, a hub id, or a model that transformers has loaded.",
            param="model",
        )
    family = family_of(model.config)
    if family != "encoder" and not model.can_generate():
        kind = "AutoModelForSeq2SeqLM" if family == "encoder-decoder" else "AutoModelForCausalLM"
        raise InvalidRequest(
            f"{type(model).__name__} says no words: load it with {kind}, or give its folder. Tasks with a head are "
            "tuned over it, too.",
            param="model",
        )
    if family == "encoder" and model.dtype != torch.float32:
        raise InvalidRequest(
            f"The encoder is in {str(model.dtype).removeprefix('torch.')}, and heads are tuned in float32: load it "
            "with dtype=torch.float32, or give its folder.",
            param="model",
        )
