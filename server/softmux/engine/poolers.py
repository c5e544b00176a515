"""What a base itself has between its last hidden states and a head, as far as its checkpoint brings it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.models.modernbert.modeling_modernbert import ModernBertPredictionHead

from softmux.errors import SelfTestFailed
from softmux.types import BaseHead

Pooler = Callable[[torch.Tensor], torch.Tensor]
"""`[tokens, width]` → `[tokens, width]`, in the base's dtype."""

_LAYERS = "head."
"""ModernBERT's checkpoints have those before its head under this name, beside the encoder."""


def base_head(config: Any) -> BaseHead | None:
    """How a base's config says that the layers before a head are built; None where all of its kind are alike."""
    if config.model_type != "modernbert":
        return None
    return BaseHead(
        str(config.classifier_activation), bool(config.classifier_bias), bool(config.norm_bias), float(config.norm_eps)
    )


def pooler_of(module: Any, folder: Path | None) -> Pooler | None:
    """The base's own: BERT's pooler, or ModernBERT's dense layer and norm, which masked tokens are trained through and
    classifiers begin with. None where the module has none, and where the checkpoint in `folder` lacks it: transformers
    then makes one of random numbers."""
    if module.config.model_type == "modernbert":
        return _layers_before_head(module, folder)
    pooler = getattr(module.base_model, "pooler", None)
    if pooler is None or (folder is not None and not _tensors(folder, "pooler.dense.weight")):
        return None
    return lambda states: torch.tanh(pooler.dense(states))


def _layers_before_head(module: Any, folder: Path | None) -> Pooler | None:
    """The bare encoder is loaded without them."""
    layers: Any = ModernBertPredictionHead(module.config)
    wanted = layers.state_dict().keys()
    found = _tensors(folder, *(f"{_LAYERS}{name}" for name in wanted)) if folder is not None else {}
    weights = {name: found[f"{_LAYERS}{name}"] for name in wanted if f"{_LAYERS}{name}" in found}
    if len(weights) < len(wanted):
        return None
    try:
        layers.load_state_dict(weights)
    except RuntimeError as error:
        raise SelfTestFailed(f"{folder}: {_LAYERS}* does not fit its config: {error}") from error
    like = next(module.parameters())
    pooler: Pooler = layers.to(device=like.device, dtype=like.dtype).eval().requires_grad_(False)
    return pooler


def _tensors(folder: Path, *ends: str) -> dict[str, torch.Tensor]:
    """Of all the checkpoint's files, those whose names end so, by these ends."""
    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names: list[str] = list(file.keys())
            found.update(
                {end: file.get_tensor(name) for name in names for end in ends if f".{name}".endswith(f".{end}")}
            )
    return found
