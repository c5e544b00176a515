"""Tiny models of every family, real PEFT folders of them, and the specs that an engine of theirs would give."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import safetensors.torch
import torch
import transformers as tf
from formats_fixtures import VOCAB, make_spec, read_files

from softmux.engine.anatomy import embeddings, linear_shapes
from softmux.engine.poolers import base_head
from softmux.formats.parts import KINDS, PAIR, POOLER
from softmux.types import LayerKV, ModelSpec

HIDDEN = 32
ALL_KINDS = frozenset({*KINDS, PAIR, POOLER})

_SIZES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 2,
          "num_attention_heads": 4, "pad_token_id": 0}  # fmt: skip

CONFIGS: Mapping[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_SIZES, num_key_value_heads=2),
    "llama-tied": lambda: tf.LlamaConfig(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt2": lambda: tf.GPT2Config(vocab_size=VOCAB, n_embd=HIDDEN, n_layer=2, n_head=4, pad_token_id=0,
                                  bos_token_id=1, eos_token_id=2),
    "bert": lambda: tf.BertConfig(**_SIZES),
    "roberta": lambda: tf.RobertaConfig(**_SIZES),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**_SIZES),
    "electra": lambda: tf.ElectraConfig(**_SIZES, embedding_size=HIDDEN),
    "distilbert": lambda: tf.DistilBertConfig(vocab_size=VOCAB, dim=HIDDEN, hidden_dim=48, n_layers=2, n_heads=4),
    "deberta-v2": lambda: tf.DebertaV2Config(**_SIZES),
    "modernbert": lambda: _modernbert(),
    "modernbert-deep": lambda: _modernbert(num_hidden_layers=6),
    "roberta-deep": lambda: tf.RobertaConfig(**_SIZES | {"num_hidden_layers": 6}),
    "modernbert-mean": lambda: _modernbert(classifier_pooling="mean", classifier_bias=True, norm_bias=True,
                                           classifier_activation="relu", norm_eps=1e-3),
}  # fmt: skip
DECODERS = ("llama", "llama-tied", "gpt2")


def _modernbert(**head: Any) -> Any:
    return tf.ModernBertConfig(**_SIZES | head, bos_token_id=1, eos_token_id=2, cls_token_id=3, sep_token_id=4)


_CLASSES = {"CAUSAL_LM": tf.AutoModelForCausalLM, "SEQ_CLS": tf.AutoModelForSequenceClassification,
            "TOKEN_CLS": tf.AutoModelForTokenClassification, None: tf.AutoModel}  # fmt: skip


def make_base(name: str, task: str | None = "CAUSAL_LM", labels: int = 3, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    if task in ("SEQ_CLS", "TOKEN_CLS"):
        config.num_labels = labels
    return _CLASSES[task].from_config(config).eval()


def spec_of(name: str, **changes: Any) -> ModelSpec:
    """As an engine that serves everything would describe the base: a decoder with its output, an encoder bare."""
    decoder = name in DECODERS
    module = make_base(name, "CAUSAL_LM" if decoder else None)
    given, output, tied = embeddings(module)
    kv_heads = getattr(module.config, "num_key_value_heads", None) or 4
    fields = {
        "model_id": name,
        "architecture": type(module).__name__,
        "model_type": module.config.model_type,
        "family": "decoder" if decoder else "encoder",
        "serves": ALL_KINDS,
        "layers": (LayerKV(kv_heads, HIDDEN // 4),) * 2,
        "linears": linear_shapes(module),
        "input_embedding": given,
        "output_embedding": output,
        "tied_embeddings": tied,
        "base_head": base_head(module.config),
    }
    return make_spec(**(fields | changes))


def tune(base: Any, config: peft.PeftConfig, seed: int = 1) -> Any:
    """A PEFT model whose learned numbers are all far from their beginnings."""
    tuned = peft.get_peft_model(base, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if parameter.requires_grad or "prompt_encoder" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return tuned.eval()


def save(tuned: Any, **options: Any) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        tuned.save_pretrained(folder, **options)
        return read_files(Path(folder))


def retensored(files: dict[str, bytes], **changes: torch.Tensor | None) -> dict[str, bytes]:
    """`files` with tensors set; None removes one. `__` in a keyword stands for a dot."""
    tensors = safetensors.torch.load(files["adapter_model.safetensors"])
    for keyword, value in changes.items():
        name = keyword.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return files | {"adapter_model.safetensors": safetensors.torch.save(tensors)}
