"""A tiny random Llama with a byte-level tokenizer, as a folder that anything can be tuned over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from support.tokenizers_made import byte_level, save


def tiny_llama(folder: Path, **sizes: Any) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer, both saved to `folder`. `sizes` are of its config, in the place
    of those here; its weights are always the same, and far enough from zero that adapters show."""
    tokenizer = save(byte_level(), folder)
    own: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **(own | sizes))).eval()
    model.save_pretrained(folder)
    return model, tokenizer
