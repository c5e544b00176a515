"""Tiny random encoder-decoders, one of each architecture that softmux says it serves, and PEFT adapters for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers as tf

from support.loras import make_half
from support.models import VOCABULARY

_T5 = {"vocab_size": VOCABULARY, "d_model": 48, "d_ff": 64, "num_heads": 4, "pad_token_id": 0, "eos_token_id": 2,
       "decoder_start_token_id": 0}  # fmt: skip
_BART = {"vocab_size": VOCABULARY, "d_model": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1,
         "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}  # fmt: skip

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "t5": lambda: tf.T5Config(**_T5, d_kv=12, num_layers=3, tie_word_embeddings=False),
    "flan_t5": lambda: tf.T5Config(
        **_T5, d_kv=16, num_layers=4, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "mt5": lambda: tf.MT5Config(**_T5, d_kv=12, num_layers=2),
    "bart": lambda: tf.BartConfig(**_BART, encoder_layers=4, decoder_layers=3),
    "mbart": lambda: tf.MBartConfig(**_BART, encoder_layers=2, decoder_layers=2, scale_embedding=True),
    "pegasus": lambda: tf.PegasusConfig(**_BART, encoder_layers=2, decoder_layers=2),
}
"""T5's second kind has more layers in its encoder than in its decoder, as BART has, and keys wider than its states."""

_TASK: dict[str, Any] = {"task_type": "SEQ_2_SEQ_LM"}

_SCALES = {
    "relative": 10.0,
    "embed_positions": 30.0,
    "_proj": 25.0,
    "fc": 1.0,
    "lm_head": 1.0,
    "model.shared": 15.0,
    "shared": 0.1,
}

METHODS: dict[str, Callable[[int], Any]] = {
    "prompt_tuning": lambda _: peft.PromptTuningConfig(**_TASK, num_virtual_tokens=5),
    "one_submodule": lambda _: peft.PromptTuningConfig(**_TASK, num_virtual_tokens=2, num_transformer_submodules=1),
    "multitask": lambda _: peft.MultitaskPromptTuningConfig(**_TASK, num_virtual_tokens=5, num_ranks=3),
    "p_tuning_mlp": lambda _: peft.PromptEncoderConfig(**_TASK, num_virtual_tokens=3, encoder_hidden_size=24),
    "p_tuning_lstm": lambda _: peft.PromptEncoderConfig(
        **_TASK, num_virtual_tokens=4, encoder_hidden_size=24, encoder_reparameterization_type="LSTM",
        encoder_dropout=0.0,
    ),
    "prefix_tuning": lambda width: peft.PrefixTuningConfig(**_TASK, num_virtual_tokens=4, token_dim=width),
    "prefix_projection": lambda width: peft.PrefixTuningConfig(
        **_TASK, num_virtual_tokens=6, token_dim=width, prefix_projection=True, encoder_hidden_size=24
    ),
    "lora": lambda _: peft.LoraConfig(**_TASK, r=3, target_modules="all-linear"),
}  # fmt: skip
"""By the width of a token's keys in one layer."""

KV_METHODS = ("prefix_tuning", "prefix_projection")


def make_base(architecture: str, folder: Path, seed: int = 0) -> Any:
    """A random model of that architecture, saved to `folder`; also returned, in fp32 on the CPU."""
    torch.manual_seed(seed)
    model = tf.AutoModelForSeq2SeqLM.from_config(ARCHITECTURES[architecture]())
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # a text must depend on its source, its start and its places
            scale = next((scale for part, scale in _SCALES.items() if part in name), 2.0)
            if parameter.dim() > 1 and parameter.requires_grad:
                parameter.mul_(scale)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(std=0.1)
    if architecture == "bart":
        model.generation_config.forced_bos_token_id = 0
    model.eval().save_pretrained(folder)
    return model


def make_adapter(base: Any, method: str, folder: Path, seed: int = 0) -> Any:
    """A random adapter of that method for `base`, saved as PEFT saves it; PEFT's model with it."""
    torch.manual_seed(seed)
    width = base.config.num_attention_heads * getattr(base.config, "d_kv", 12)
    model = peft.get_peft_model(copy.deepcopy(base), METHODS[method](width))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "prompt_encoder" in name:
                parameter.add_(torch.randn_like(parameter) * 0.5)
            elif "lora_B" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval()


def make_pair(base: Any, method: str, folder: Path, seed: int = 0) -> Any:
    """A LoRA of both sides' linear layers and a soft prompt, in the four files of a pair. Its reference: PEFT's model
    of the soft prompt on the base with the LoRA merged into it."""
    merged = make_half(base, folder, seed, task_type=_TASK["task_type"], r=3, target_modules="all-linear")
    make_adapter(base, method, folder, seed)
    return peft.PeftModel.from_pretrained(merged, str(folder)).eval()
