"""Tiny encoders, and PEFT adapters with heads on encoders and decoders, beside PEFT's own logits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers as tf

from support.models import ARCHITECTURES, VOCABULARY

K = 5
LABELS = (2, 4, 25)
_ENCODER = {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 130,
    "type_vocab_size": 2,
}
ENCODERS: dict[str, Callable[[], Any]] = {
    "bert": lambda: tf.BertConfig(**_ENCODER, pad_token_id=0),
    "roberta": lambda: tf.RobertaConfig(**_ENCODER, pad_token_id=1),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**_ENCODER, pad_token_id=1),
    "electra": lambda: tf.ElectraConfig(**_ENCODER, embedding_size=48, pad_token_id=0),
}
DECODERS = ("llama", "qwen2", "gpt2")


def _modernbert(**head: Any) -> Any:
    return tf.ModernBertConfig(
        **{name: size for name, size in _ENCODER.items() if name != "type_vocab_size"}, **head,
        local_attention=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip


WITHOUT_PREFIX: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "distilbert": (
        lambda: tf.DistilBertConfig(
            vocab_size=VOCABULARY, dim=48, hidden_dim=64, n_layers=3, n_heads=4, max_position_embeddings=130
        ),
        ["pre_classifier"],
    ),
    "modernbert": (lambda: _modernbert(classifier_pooling="cls"), []),
    "modernbert-mean": (
        lambda: _modernbert(
            classifier_pooling="mean", classifier_bias=True, norm_bias=True, classifier_activation="relu"
        ),
        ["head"],
    ),
}
"""Encoders that take no keys and values, and what is saved of what stands before their head. A row of ModernBERT's is
longer than what its sliding layers see of it: four tokens on either side."""
MASKED = ("modernbert", "modernbert-mean")
"""Bases whose checkpoint has the layers before a head, which masked tokens are trained through."""
METHODS: dict[str, Callable[[str], Any]] = {
    "prompt": lambda task: peft.PromptTuningConfig(task_type=task, num_virtual_tokens=K),
    "prefix": lambda task: peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=K - 1),
    "cartridge": lambda task: peft.CartridgeConfig(task_type=task, num_virtual_tokens=7),
    "p_tuning": lambda task: peft.PromptEncoderConfig(task_type=task, num_virtual_tokens=K + 1, encoder_hidden_size=24),
}
TARGETS = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["k_proj", "o_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "modernbert": ["Wqkv", "Wi"],
    "modernbert-mean": ["Wqkv", "Wo"],
}
"""What a LoRA acts on."""
_ENCODERS_TARGETS = ["query", "value", "intermediate.dense"]


def lora(task: str, architecture: str) -> Any:
    return peft.LoraConfig(
        task_type=task,
        r=3,
        lora_alpha=9,
        target_modules=TARGETS.get(architecture, _ENCODERS_TARGETS),
        fan_in_fan_out=architecture == "gpt2",
    )


CLASSES = {"SEQ_CLS": tf.AutoModelForSequenceClassification, "TOKEN_CLS": tf.AutoModelForTokenClassification}


def config_of(architecture: str) -> Any:
    if architecture in WITHOUT_PREFIX:
        return WITHOUT_PREFIX[architecture][0]()
    config = (ENCODERS | ARCHITECTURES)[architecture]()
    config.pad_token_id = None if architecture in DECODERS else config.pad_token_id
    return config


def make_base(architecture: str, folder: Path, **changes: Any) -> Any:
    """The bare base, saved; for decoders with its language head, as masked language models those that have one.
    `changes` are of its config."""
    torch.manual_seed(0)
    kind = tf.AutoModelForCausalLM if architecture in DECODERS else tf.AutoModel
    kind = tf.AutoModelForMaskedLM if architecture in MASKED else kind
    config = config_of(architecture)
    config.update(changes)
    model = kind.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
        if architecture in MASKED:
            for parameter in (*model.head.norm.parameters(), *model.base_model.final_norm.parameters()):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return model


def tuned(base: Any, architecture: str, task: str, method: str, labels: int, folder: Path, **more: Any) -> Any:
    """A PEFT model with a head over the base's own weights, saved to `folder`; `more` goes into its config."""
    torch.manual_seed(labels)
    config = copy.deepcopy(base.config)
    config.num_labels = labels
    model = CLASSES[task].from_config(config)
    backbone = base.base_model if architecture in (*DECODERS, *MASKED) else base
    inner = getattr(model, model.base_model_prefix)
    missing, unexpected = inner.load_state_dict(copy.deepcopy(backbone.state_dict()), strict=False)
    assert not missing
    assert all("pooler" in name for name in unexpected)
    if architecture in MASKED:
        model.head.load_state_dict(base.head.state_dict())
    adapter = lora(task, architecture) if method == "lora" else METHODS[method](task)
    if architecture == "distilbert":  # PEFT does not find these in its config
        adapter.token_dim, adapter.num_attention_heads = config.dim, config.n_heads
    if architecture in WITHOUT_PREFIX and (task == "SEQ_CLS" or architecture in MASKED):
        adapter.modules_to_save = list(WITHOUT_PREFIX[architecture][1]) or None
    model = peft.get_peft_model(model, adapter)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad or "prompt_encoder" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(folder)
    if more:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    (folder / "softmux.json").write_text(json.dumps({"labels": [f"L{i}" for i in range(labels)]}))
    return model


@torch.no_grad()
def reference(model: Any, ids: list[int], task: str) -> np.ndarray:
    """`[tokens or 1, labels]`: the logits of the text's tokens."""
    given = torch.tensor([ids])
    logits = model(input_ids=given, attention_mask=torch.ones_like(given)).logits[0]
    return np.atleast_2d(logits[-len(ids) :].numpy() if task == "TOKEN_CLS" else logits.numpy())
