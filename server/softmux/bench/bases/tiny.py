"""A model so small that only the machinery around it counts, and adapters of every method for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from softmux.engine.packed import PackedModel

VOCABULARY, HIDDEN, LAYERS, KV_HEADS, HEAD_DIM, CONTEXT = 96, 32, 2, 2, 8, 96
METHODS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "template")


def tiny_model(device: torch.device) -> PackedModel:
    return PackedModel(_module().to(device), None, "soak")


def save_tiny(folder: Path, hidden: int = HIDDEN) -> None:
    """The same model, or a wider one, as a checkpoint, with a tokenizer of one word for each id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    _module(hidden).save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))  # noqa: S106 - no password
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0", bos_token="w1", eos_token="w2")  # noqa: S106
    fast.save_pretrained(folder)


def _module(hidden: int = HIDDEN) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    module = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=LAYERS,
            num_attention_heads=2 * KV_HEADS,
            num_key_value_heads=KV_HEADS,
            vocab_size=VOCABULARY,
            max_position_embeddings=CONTEXT,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    with torch.no_grad():
        for parameter in module.parameters():  # far enough from zero that it decides
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return module


def adapter_files(method: str, virtual: int, number: int, padding: int = 0) -> dict[str, bytes]:
    """A random adapter for the tiny model, as PEFT lays it down; its weights' file `padding` bytes longer."""
    prefix = method == "PREFIX_TUNING"
    config: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING" if method == "template" else method,
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": virtual,
        "inference_mode": True,
    }
    if method == "P_TUNING":
        config |= {"encoder_reparameterization_type": "MLP", "encoder_hidden_size": 16, "encoder_num_layers": 2}
    width = LAYERS * 2 * KV_HEADS * HEAD_DIM if prefix else HIDDEN
    vectors = np.random.default_rng(number).standard_normal((virtual, width), dtype=np.float32) * 0.2
    return {
        "adapter_config.json": json.dumps(config).encode(),
        "adapter_model.safetensors": save(
            {"prompt_embeddings": vectors}, {"padding": "x" * padding} if padding else None
        ),
    }
