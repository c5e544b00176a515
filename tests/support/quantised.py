"""Bases in 8 and 4 bits as transformers makes them, for PEFT to run on: what softmux is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, TorchAoConfig

from support.models import VOCABULARY


def make_wide_base(folder: Path) -> None:
    """A random Llama whose rows are whole blocks of 64, saved to `folder`: elsewhere bitsandbytes' CPU kernel, on which
    PEFT runs, dequantises wrongly."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=VOCABULARY, eos_token_id=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.eval().save_pretrained(folder)


def configs() -> dict[str, Any]:
    """Every way in which a checkpoint may bring 8 or 4 bits; `int8` and `nf4` are the server's own, too."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    four = {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}
    return {
        "int8": TorchAoConfig(Int8WeightOnlyConfig(set_inductor_config=False)),
        "nf4": BitsAndBytesConfig(**four, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "nf4-single": BitsAndBytesConfig(**four, bnb_4bit_quant_type="nf4"),
        "fp4": BitsAndBytesConfig(**four, bnb_4bit_quant_type="fp4"),
        "llm.int8": BitsAndBytesConfig(load_in_8bit=True),
        "dynamic": TorchAoConfig(Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)),
    }


def load_reference(folder: Path, name: str) -> Any:
    """The model in `folder` in that format, run by torchao's or bitsandbytes' own layers in float32 on the CPU."""
    module = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, quantization_config=configs()[name], device_map={"": torch.device("cpu")}
    )
    for layer in module.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # some CPUs would multiply in bfloat16
    return module.eval()


def in_full(module: Any) -> Any:
    """The same model with plain linear layers that hold its dequantised weights."""
    from softmux.engine.quantised import QuantisedLinear, take_over

    take_over(module)
    for name, layer in list(module.named_modules()):
        if isinstance(layer, QuantisedLinear):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain.weight.data = layer.quantised.dequantised(torch.float32)
            if layer.bias is not None:
                plain.bias.data = layer.bias.data
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, plain)
    return module
