"""What an adapter's folder is: its method, where it acts, what it costs, and whether it fits a base."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softmux.errors import SoftmuxError
from softmux.formats.config import CONFIG_FILE
from softmux.formats.folder import LORA_FILES, Adapter, parse_adapter
from softmux.formats.json_file import read_object
from softmux.formats.parts import HeadPart, LoraPart, Part, Parts, PrefixPart, PromptPart, TokenRowsPart
from softmux.formats.serving import check_served
from softmux.formats.softmux_json import SOFTMUX_FILE
from softmux.formats.tensors import WEIGHTS_FILE, read_safetensors
from softmux.inspection.own_base import own_base
from softmux.types import ModelSpec

_FP32, _BF16 = 4, 2


@dataclass(slots=True)
class Report:
    """`facts` in the order they are shown, JSON values all; `nearest` the tokens next to each learned vector."""

    facts: dict[str, Any]
    adapter: Adapter | None = None
    nearest: list[dict[str, Any]] = field(default_factory=list)


def inspect(files: Mapping[str, bytes], folder: str, spec: ModelSpec | None = None) -> Report:
    """`spec` is the base it is held against; without one, only what the folder says of itself is told.

    A folder that can't be read whole still has its raw facts, and `problem`. Raises `InvalidAdapter` where even these
    can't be read.
    """
    config = read_object(files[CONFIG_FILE], CONFIG_FILE)
    said = read_object(files[SOFTMUX_FILE], SOFTMUX_FILE) if SOFTMUX_FILE in files else None
    tensors = read_safetensors(files[WEIGHTS_FILE])
    if LORA_FILES[1] in files:
        tensors = tensors | read_safetensors(files[LORA_FILES[1]])
    report = Report(
        {
            "folder": folder,
            "method": str(config.get("peft_type", "not said")).lower(),
            "peft_type": config.get("peft_type"),
            "task_type": config.get("task_type"),
            "virtual_tokens": config.get("num_virtual_tokens"),
            "parameters": sum(math.prod(tensor.shape) for tensor in tensors.values()),
            "bytes": sum(len(data) for data in files.values()),
            "base": config.get("base_model_name_or_path"),
        }
    )
    try:
        report.adapter = parse_adapter(files, own_base(files))
        report.facts |= _costs(report.adapter, spec)
    except SoftmuxError as error:
        report.facts["problem"] = f"{error.message} [{error.param}]"
    if spec is not None:
        report.facts |= _fit(files, spec)
    report.facts |= {
        "softmux_json": said,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "files": {name: len(data) for name, data in files.items()},
    }
    return report


def _costs(adapter: Adapter, spec: ModelSpec | None) -> dict[str, Any]:
    manifest = adapter.manifest
    count, virtual = manifest.parameters, manifest.virtual_tokens
    return {
        "method": manifest.method,
        "acts_on": "; ".join(map(_acts_on, adapter.parts)),
        "virtual_tokens": virtual,
        "parameters": count,
        "share_of_base": count / spec.parameters if spec is not None and spec.parameters else None,
        "bytes_float32": count * _FP32,
        "bytes_bfloat16": count * _BF16,
        "kv_bytes_bfloat16": _kv_bytes(adapter.parts, spec),
        "tokens_a_request": virtual,
        "warnings": list(adapter.warnings),
    }


def _kv_bytes(parts: Parts, spec: ModelSpec | None) -> int | None:
    """Of the virtual tokens' keys and values, resident while it is served. A prompt's can't be told without a base."""
    for part in parts:
        if isinstance(part, PrefixPart):
            saved = len(part.keys)
            layers = len(spec.layers) if spec is not None and spec.family == "encoder-decoder" else saved
            return (part.keys.size + part.values.size) // saved * min(layers, saved) * _BF16
        if isinstance(part, PromptPart):
            if spec is None:
                return None
            if spec.family == "encoder-decoder":  # it is part of each request's own source
                return 0
            return part.virtual_tokens * sum(2 * layer.kv_heads * layer.head_dim for layer in spec.layers) * _BF16
    return 0


def _acts_on(part: Part) -> str:
    match part:
        case PromptPart():
            return f"the input: {part.virtual_tokens} vectors of {part.vectors.shape[1]} numbers"
        case PrefixPart():
            layers, tokens, heads, width = part.keys.shape
            return f"keys and values of {tokens} positions in {layers} layers, {heads} heads of {width}"
        case LoraPart():
            names = sorted({name.rpartition(".")[2] for name in part.layers})
            ranks = sorted({layer.rank for layer in part.layers.values()})
            return f"{len(part.layers)} linear layers ({', '.join(names)}), rank {', '.join(map(str, ranks))}"
        case TokenRowsPart():
            return f"rows of {len(part.ids)} tokens in the embedding ({part.at})"
        case HeadPart():
            return f"a {part.head} head, {len(part.labels)} labels ({part.problem_type.replace('_', ' ')})"


def _fit(files: Mapping[str, bytes], spec: ModelSpec) -> dict[str, Any]:
    """Whether this version of softmux serves it on that base, and why not."""
    try:
        adapter = parse_adapter(_known_fingerprints(files, spec), spec)
    except SoftmuxError as error:
        return {"fits": False, "served": False, "why_not": f"{error.message} [{error.param}]"}
    try:
        check_served(adapter.parts, spec)
    except SoftmuxError as error:
        return {"fits": True, "served": False, "why_not": error.message}
    return {"fits": True, "served": True}


def _known_fingerprints(files: Mapping[str, bytes], spec: ModelSpec) -> Mapping[str, bytes]:
    """Without the fingerprints that can't be compared, as the base's files are not there."""
    if SOFTMUX_FILE not in files:
        return files
    said = read_object(files[SOFTMUX_FILE], SOFTMUX_FILE)
    for name in ("base_fingerprint", "tokenizer_fingerprint"):
        if getattr(spec, name) == "unknown":
            said.pop(name, None)
    return {**files, SOFTMUX_FILE: json.dumps(said).encode()}
