"""A migrated task's files: those of its old version, with what is the new base's own in the place of the old's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save

from softmux.formats.config import CONFIG_FILE
from softmux.formats.folder import LORA_FILES
from softmux.formats.methods.encoded import SAVED
from softmux.formats.parts import Float32Array, LoraPart, Parts, PrefixPart, PromptPart
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson
from softmux.formats.tensors import WEIGHTS_FILE
from softmux.types import ModelSpec

_FOLDED = ("MULTITASK_PROMPT_TUNING", "CPT")
"""Saved with what their vectors were made of, which says nothing to another base: what is migrated is prompt tuning."""

_ONLY_THEIRS = ("cpt_", "opt_", "num_ranks", "num_tasks", "prompt_tuning_init")


def files_of(
    old: Mapping[str, bytes], parts: Parts, spec: ModelSpec, label: str, said: SoftmuxJson
) -> dict[str, bytes]:
    """As PEFT writes them, for the base `spec`, which configs call `label`."""
    soft = [part for part in parts if not isinstance(part, LoraPart)]
    lora = [part for part in parts if isinstance(part, LoraPart)]
    files = {}
    if soft:
        files[CONFIG_FILE] = _config(old[CONFIG_FILE], spec, label, soft[0])
        files[WEIGHTS_FILE] = save({SAVED: _flat(soft[0])})
    if lora:
        config, weights = LORA_FILES if soft else (CONFIG_FILE, WEIGHTS_FILE)
        files[config] = _config(old[config], spec, label, lora[0])
        files[weights] = save(dict(_pairs(lora[0])))
    text = json.dumps(said.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
    return files | {SOFTMUX_FILE: text.encode() + b"\n"}


def _config(data: bytes, spec: ModelSpec, label: str, part: object) -> bytes:
    said: dict[str, Any] = json.loads(data)
    if said.get("peft_type") in _FOLDED:
        said = {name: value for name, value in said.items() if not name.startswith(_ONLY_THEIRS)}
        said["peft_type"] = "PROMPT_TUNING"
    said["base_model_name_or_path"] = label
    own: dict[str, Any] = {"tokenizer_name_or_path": label, "revision": None}
    layer = spec.layers[0]
    if isinstance(part, PromptPart):
        own |= {"token_dim": spec.hidden_size, "num_layers": len(spec.layers), "num_attention_heads": None}
    if isinstance(part, PrefixPart):
        own |= {
            "token_dim": layer.kv_heads * layer.head_dim,
            "num_attention_heads": layer.kv_heads,
            "num_layers": len(spec.layers),
        }
        if "num_frozen_tokens" in said:
            said["num_frozen_tokens"] = 0
    said |= {name: value for name, value in own.items() if said.get(name) is not None}
    return json.dumps(said, indent=2, ensure_ascii=False).encode() + b"\n"


def _flat(part: object) -> Float32Array:
    if isinstance(part, PromptPart):
        return part.vectors
    assert isinstance(part, PrefixPart)
    both = np.stack([part.keys, part.values])  # [2, layers, k, heads, head_dim]
    return np.ascontiguousarray(both.transpose(2, 1, 0, 3, 4).reshape(part.virtual_tokens, -1))


def _pairs(part: LoraPart) -> Iterator[tuple[str, Float32Array]]:
    for name, layer in part.layers.items():
        yield f"base_model.model.{name}.lora_A.weight", np.ascontiguousarray(layer.a)
        yield f"base_model.model.{name}.lora_B.weight", np.ascontiguousarray(layer.b)
