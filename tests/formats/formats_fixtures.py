"""Tiny models, real PEFT folders of them, and the spec that the formats check against."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from softmux.types import LayerKV, ModelSpec

VOCAB = 97


def make_spec(**changes: Any) -> ModelSpec:
    """The spec of the `gqa` model below, with changes."""
    fields: dict[str, Any] = {
        "model_id": "tiny-gqa",
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "hidden_size": 32,
        "vocab_size": VOCAB,
        "context_length": 128,
        "base_fingerprint": "sha256:" + "b" * 64,
        "tokenizer_fingerprint": "sha256:" + "c" * 64,
        "layers": (LayerKV(2, 8),) * 3,
        "eos_token_ids": (2,),
        "parameters": 1000,
        "device": "cpu",
        "embedding_norm": 1.0,
    }
    return ModelSpec(**(fields | changes))


def _llama(kv_heads: int, head_dim: int) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            max_position_embeddings=128,
        )
    )


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], ModelSpec]] = {
    "gqa": (lambda: _llama(2, 8), make_spec()),
    "wide-heads": (lambda: _llama(1, 12), make_spec(model_id="wide-heads", layers=(LayerKV(1, 12),) * 3)),
    "gpt2": (
        lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
        make_spec(model_id="gpt2", architecture="GPT2LMHeadModel", layers=(LayerKV(4, 8),) * 2),
    ),
}

CONFIGS: dict[str, Callable[[], peft.PeftConfig]] = {
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "mlp": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, encoder_hidden_size=24),
    "mlp-default": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=1),
    "lstm": lambda: peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_reparameterization_type="LSTM",
        encoder_hidden_size=24,
        encoder_num_layers=3,
        encoder_dropout=0.0,
    ),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "projection": lambda: peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, prefix_projection=True, encoder_hidden_size=20
    ),
}


def make_peft(model: str, config: str) -> tuple[peft.PeftModel, ModelSpec]:
    torch.manual_seed(7)
    build, spec = MODELS[model]
    tuned = peft.get_peft_model(build(), CONFIGS[config]())
    return tuned.eval(), spec


def read_files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")}


def edited(files: dict[str, bytes], **changes: Any) -> dict[str, bytes]:
    """`files` with fields of adapter_config.json set; a value of `...` removes the field."""
    config = json.loads(files["adapter_config.json"]) | changes
    config = {name: value for name, value in config.items() if value is not ...}
    return files | {"adapter_config.json": json.dumps(config).encode()}


def bare_file(header: bytes, body: bytes = b"") -> bytes:
    """A safetensors file of exactly this header and body, however wrong."""
    return len(header).to_bytes(8, "little") + header + body
