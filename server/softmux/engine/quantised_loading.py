"""Loading in 8 or 4 bits by transformers with torchao or bitsandbytes: full weights quantised as they are read, or a
checkpoint that brings such weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from softmux.engine.quantised import format_of, take_over

_PACKAGES = {"int8": "torchao", "nf4": "bitsandbytes"}
_KNOWN = {"torchao": "torchao", "bitsandbytes": "bitsandbytes"}
"""A checkpoint's `quant_method` → the package that it takes."""


def own_method(config: Any) -> str | None:
    """The `quant_method` of a checkpoint that is quantised already, where it is one of those loaded here."""
    brought = getattr(config, "quantization_config", None)
    if not isinstance(brought, dict):
        return None
    method = brought.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in brought else None)
    return method if method in _KNOWN else None


def load_quantised(
    folder: Path, config: Any, quantization: str, *, device: torch.device, dtype: torch.dtype
) -> nn.Module:
    """The causal language model in `folder`, its linear layers (but the head) in `int8` or `nf4`, the rest in `dtype`;
    `auto`: as the checkpoint brings them.

    Raises ValueError, in words, where a package is missing, where the checkpoint is quantised already and yet
    `quantization` says how, or where it has no layer that can be; and what transformers raises.
    """
    own = own_method(config)
    if quantization != "auto" and getattr(config, "quantization_config", None) is not None:
        raise ValueError("its weights are quantised already; leave --quantization out")
    package = _PACKAGES[quantization] if own is None else _KNOWN[own]
    for needed in (package, "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise ValueError(f'weights in 8 or 4 bits need {needed}: pip install "softmux[quantized]"')
    asked = {} if own else {"quantization_config": _config(quantization, dtype)}
    module: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
        device_map={"": device},  # quantised where they are to stay
        **asked,
    )
    taken = take_over(module)
    if not taken and format_of(module) is None:
        raise ValueError(f"it has no linear layer that {package} can quantise; leave --quantization out, or take fp8")
    del module.hf_quantizer, module.config.quantization_config  # from here on a module like any other
    loaded: nn.Module = module
    return loaded


def _config(quantization: str, dtype: torch.dtype) -> Any:
    """`nf4` as QLoRA has it (2305.14314): blocks of 64, their scales quantised in turn."""
    if quantization == "int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False))  # True would allow TF32 everywhere
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
