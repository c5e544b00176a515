"""Tiny random base models, one of each architecture that softmux says it serves, and PEFT adapters for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)

VOCABULARY = 96
_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MULTI_HEAD = {key: value for key, value in _SIZES.items() if key != "num_key_value_heads"}
_GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 128, "bos_token_id": 1}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_SIZES),
    "mistral": lambda: tf.MistralConfig(**_SIZES, sliding_window=12),
    "qwen2": lambda: tf.Qwen2Config(**_SIZES),
    "qwen3": lambda: tf.Qwen3Config(**_SIZES, head_dim=16),
    "gpt2": lambda: tf.GPT2Config(**_GPT2, pad_token_id=0, eos_token_id=2),
    "opt": lambda: tf.OPTConfig(**_MULTI_HEAD, ffn_dim=64, word_embed_proj_dim=48),
    "gpt_neox": lambda: tf.GPTNeoXConfig(**_MULTI_HEAD),
    "phi3": lambda: tf.Phi3Config(**_SIZES),
    "gemma2": lambda: tf.Gemma2Config(**_SIZES, head_dim=12, sliding_window=12, query_pre_attn_scalar=12),
    "gemma3": lambda: tf.Gemma3TextConfig(**_SIZES, head_dim=12, sliding_window=12, query_pre_attn_scalar=12),
    "olmo2": lambda: tf.Olmo2Config(**_SIZES),
    "stablelm": lambda: tf.StableLmConfig(
        **_SIZES, rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    ),
    "granite": lambda: tf.GraniteConfig(**_SIZES, residual_multiplier=0.5, logits_scaling=2.0),
    "smollm3": lambda: tf.SmolLM3Config(**_SIZES),
}

METHODS: dict[str, Callable[[], Any]] = {
    "prompt_tuning": lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix_tuning": lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "prefix_projection": lambda: PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=24
    ),
    "p_tuning_mlp": lambda: PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=24),
    "p_tuning_lstm": lambda: PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=7,
        encoder_hidden_size=24,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.0,
    ),
}


def make_base(architecture: str, folder: Path, seed: int = 0, **changed: Any) -> Any:
    """A random model of that architecture, saved to `folder`; also returned, in fp32 on the CPU. `changed` is what its
    config has in the place of its own."""
    torch.manual_seed(seed)
    config = ARCHITECTURES[architecture]()
    if changed:
        derived = {"layer_types"} if "sliding_window" in changed else set()
        kept = {name: value for name, value in config.to_dict().items() if name not in derived}
        config = type(config)(**(kept | changed))
    model = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far enough from zero that adapters and positions show
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.eval().save_pretrained(folder)
    return model


def make_adapter(base: Any, method: str, folder: Path, seed: int = 0) -> None:
    """A random adapter of that method for `base`, saved as PEFT saves it."""
    torch.manual_seed(seed)
    model = get_peft_model(copy.deepcopy(base), METHODS[method]())
    with torch.no_grad():
        for parameter in model.prompt_encoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5 * parameter.std().nan_to_num(1.0).clamp(min=0.02))
    model.save_pretrained(folder)


def load_peft(base: Any, folder: Path) -> Any:
    return PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def greedy_reference(model: Any, ids: list[int], new_tokens: int, **more: Any) -> tuple[list[int], int]:
    """`generate` of a (PEFT) model on one unpadded row: its new tokens (to the end, eos included), and how many of
    them come before the first choice between two logits closer than 1e-4. `more` is what that method needs."""
    prompt = torch.tensor([ids])
    with torch.no_grad():
        output = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            **more,
        )
    tokens = output.sequences[0].tolist()[-len(output.logits) :]
    for position, logits in enumerate(output.logits):
        best = logits[0].topk(2).values
        if best[0] - best[1] < 1e-4:
            return tokens, position
    return tokens, len(tokens)
