"""The base that a folder itself speaks of, as far as its numbers go: enough to read it where no base is at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from softmux.formats.config import CONFIG_FILE
from softmux.formats.folder import LORA_FILES
from softmux.formats.json_file import read_object
from softmux.formats.parts import KINDS, PAIR
from softmux.formats.peft_types import HEADS, TRANSFORMS
from softmux.formats.softmux_json import SOFTMUX_FILE
from softmux.formats.tensors import WEIGHTS_FILE, Tensor, read_safetensors
from softmux.types import Family, LayerKV, LinearShape, ModelSpec

_PAIR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_ROWS = re.compile(r"base_model\.model\.(.+?)(?:\.token_adapter)?\.trainable_tokens_delta(?:\.default)?")


def own_base(files: Mapping[str, bytes]) -> ModelSpec:
    """A spec that agrees with every number in `files`; what they do not say is zero. Raises `InvalidAdapter`."""
    config = read_object(files[CONFIG_FILE], CONFIG_FILE)
    said = read_object(files[SOFTMUX_FILE], SOFTMUX_FILE) if SOFTMUX_FILE in files else {}
    tensors = read_safetensors(files[WEIGHTS_FILE])
    if LORA_FILES[1] in files:
        tensors = tensors | read_safetensors(files[LORA_FILES[1]])
    tables = [match[1] for match in map(_ROWS.fullmatch, tensors) if match]
    return ModelSpec(
        model_id=_text(config.get("base_model_name_or_path")) or "the base it was trained on",
        architecture="unknown",
        dtype="float32",
        hidden_size=_width(config, tensors),
        vocab_size=1 << 31,
        context_length=1 << 30,
        base_fingerprint=_text(said.get("base_fingerprint")) or "unknown",
        tokenizer_fingerprint=_text(said.get("tokenizer_fingerprint")) or "unknown",
        layers=(_kv(config),) * (_count(config.get("num_layers")) or 1),
        eos_token_ids=(),
        parameters=0,
        device="none",
        embedding_norm=0.0,
        model_type=_kind_of_head(config, tensors),
        family=_family(config, tensors),
        serves=frozenset({*KINDS, PAIR}),
        linears=_linears(tensors),
        input_embedding=next((name for name in tables if not name.endswith("head")), ""),
        output_embedding=next((name for name in tables if name.endswith("head")), ""),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and 0 < value <= 1 << 24 else 0


def _width(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> int:
    """Hidden size: of a head's input, of a row of the table, else of the prompt's vectors."""
    heads = [tensor for name, tensor in tensors.items() if re.search(r"(classifier|score)[.\w]*\.weight$", name)]
    rows = [tensor for name, tensor in tensors.items() if _ROWS.fullmatch(name)]
    prompts = [tensors["prompt_embeddings"]] if "prompt_embeddings" in tensors else []
    if config.get("peft_type") in ("PREFIX_TUNING", "CARTRIDGE"):
        prompts = []
    known = next((tensor.shape[-1] for tensor in (*heads, *rows, *prompts) if tensor.shape), 0)
    return known or _count(config.get("token_dim"))


def _kv(config: Mapping[str, Any]) -> LayerKV:
    """`token_dim` of a prefix is what a token's keys hold; of other methods it says nothing of them."""
    heads, width = _count(config.get("num_attention_heads")) or 1, _count(config.get("token_dim"))
    return LayerKV(heads, width // heads)


def _linears(tensors: Mapping[str, Tensor]) -> tuple[LinearShape, ...]:
    sides: dict[str, dict[str, int]] = {}
    for name, tensor in tensors.items():
        match = _PAIR.fullmatch(name)
        if match and len(tensor.shape) == 2:
            sides.setdefault(match[1], {})[match[2]] = tensor.shape[1 if match[2] == "A" else 0]
    return tuple(LinearShape(name, found.get("A", 0), found.get("B", 0)) for name, found in sides.items())


def _family(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Family:
    if config.get("task_type") == TRANSFORMS:
        return "encoder-decoder"
    return "encoder" if _is_encoder(config, tensors) else "decoder"


def _is_encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """A decoder's head of a sequence is `score`; `classifier` may be either's, of tokens."""
    return config.get("task_type") in HEADS and any("classifier" in name for name in tensors)


def _kind_of_head(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    if not _is_encoder(config, tensors):
        return ""
    if any("classifier.dense" in name for name in tensors):
        return "roberta"
    if any(".head.dense" in name or ".Wqkv" in name for name in tensors):
        return "modernbert"
    return "distilbert" if any("pre_classifier" in name for name in tensors) else "bert"
