"""Loading a checkpoint in full precision into fp8 weights, one linear layer after the other.

It goes through the hooks that transformers gives its own quantisers: its loader knows every architecture's renamed,
merged and tied tensors, reads shards one tensor at a time while a quantiser is at work, and hands each linear layer's
weight over as soon as it is read. So neither host nor device ever holds more than one of them in full precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from softmux.engine.fp8 import E4M3, Fp8Linear, swap_linears

_METHOD = "softmux_fp8"


class _Config(QuantizationConfigMixin):  # type: ignore[misc]
    """Carries the device on which weights are quantised, and stay, to the quantiser."""

    def __init__(self, device: torch.device) -> None:
        self.quant_method = _METHOD
        self.device = device


class _Quantise(ConversionOps):  # type: ignore[misc]
    """Full precision in, `weight` and `weight_scale` out."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def convert(self, input_dict: dict[str, Any], model: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        given: dict[str, torch.Tensor] = {}
        for name, value in input_dict.items():
            tensor = value[0] if isinstance(value, list) else value
            layer = _fp8_layer(model, name)
            if layer is None:
                given[name] = tensor
                continue
            quantised = layer.quantise(tensor.to(self._device))
            given[name] = nn.Parameter(quantised.data, requires_grad=False)
            given[f"{name}_scale"] = quantised.scale
        return given


class _Quantiser(HfQuantizer):  # type: ignore[misc]
    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> Any:
        swap_linears(model)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        return _fp8_layer(model, param_name) is not None

    def get_quantize_ops(self) -> _Quantise:
        return _Quantise(self.quantization_config.device)

    @property
    def is_trainable(self) -> bool:
        return False

    def is_serializable(self) -> bool:
        return False


def _fp8_layer(model: Any, parameter: str) -> Fp8Linear | None:
    """The layer whose weight that is, where it is to be quantised."""
    owner, _, leaf = parameter.rpartition(".")
    layer = model.get_submodule(owner)
    return layer if leaf == "weight" and isinstance(layer, Fp8Linear) else None


def load_fp8(folder: Path, config: Any, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The causal language model in `folder` with its linear layers (but the head) in fp8, the rest in `dtype`.

    Raises ValueError for a checkpoint that is quantised already or lacks a weight, and what transformers raises.
    """
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("its weights are quantised already; leave --quantization out")
    AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault(_METHOD, _Config)
    AUTO_QUANTIZER_MAPPING.setdefault(_METHOD, _Quantiser)
    module: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
        quantization_config=_Config(device),
    )
    for name, layer in module.named_modules():
        if isinstance(layer, Fp8Linear) and layer.weight.dtype != E4M3:
            raise ValueError(f"the checkpoint has no weight for {name}")
    del module.hf_quantizer, module.config.quantization_config  # from here on a module like any other
    loaded: nn.Module = module.to(device)
    return loaded
