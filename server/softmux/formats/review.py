"""What is said of an admitted adapter: values beyond the served dtype refuse it, odd ones are warned of."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from softmux.formats.config import CONFIG_FILE
from softmux.formats.parts import Float32Array, LoraLayer, LoraPart, Parts, PrefixPart, PromptPart
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson
from softmux.formats.tensors import WEIGHTS_FILE, invalid_tensor
from softmux.types import Manifest, ModelSpec

_MAX_FINITE = {"float16": 65504.0, "bfloat16": 3.3895e38}
_ODD_NORM = 64.0
"""How many times larger or smaller than the mean embedding a learned vector is before a person is told."""
_ODD_UPDATE = 8.0
"""How many times larger than the weight a LoRA's update of it is before a person is told; trained ones are below 1."""

_PIECE = 1 << 14

Float64Array = NDArray[np.float64]


def check_range(parts: Parts, spec: ModelSpec) -> None:
    """Finite in the file is not yet finite in the model's dtype."""
    limit = _MAX_FINITE.get(spec.dtype)
    for part in parts if limit is not None else ():
        for name, array in part.arrays():
            most = max(float(array.max()), -float(array.min())) if array.size else 0.0
            if limit is not None and most > limit:
                raise invalid_tensor(
                    "prompt_embeddings" if isinstance(part, PromptPart | PrefixPart) else name,
                    f"its {name} reach {most:.3g}, which is infinite in {spec.dtype}, the dtype this server runs; "
                    "train with smaller values.",
                )


def warnings(parts: Parts, said: SoftmuxJson, spec: ModelSpec) -> tuple[str, ...]:
    """What is odd and served all the same, in sentences."""
    told = _same_words(said.labels) if isinstance(said.labels, dict) else []
    for part in parts:
        match part:
            case PromptPart():
                told += _odd_vectors(part.vectors, spec)
            case PrefixPart():
                told += _odd_prefix("keys", part.keys) + _odd_prefix("values", part.values)
            case LoraPart():
                told += _odd_updates(part, spec)
            case _:
                pass
    return tuple(told)


def _same_words(labels: Mapping[str, str]) -> list[str]:
    by_words: dict[str, list[str]] = {}
    for label, words in labels.items():
        by_words.setdefault(words, []).append(label)
    alike = next((names for names in by_words.values() if len(names) > 1), None)
    if alike is None:
        return []
    return [f"The same words say the labels “{alike[0]}” and “{alike[1]}”: their scores will always be equal."]


def _norms(array: Float32Array) -> Float64Array:
    """Of the last axis, in float64, where squares do not overflow; a piece at a time, since a cartridge is large."""
    rows = array.reshape(-1, array.shape[-1])
    pieces = (rows[start : start + _PIECE].astype(np.float64) for start in range(0, len(rows), _PIECE))
    return np.concatenate([np.linalg.norm(piece, axis=1) for piece in pieces])


def _odd_vectors(vectors: Float32Array, spec: ModelSpec) -> list[str]:
    norms = _norms(vectors)
    if not norms.any():
        return ["All learned vectors are zero: the adapter looks untrained."]
    usual = spec.embedding_norm
    odd = np.count_nonzero((norms > _ODD_NORM * usual) | (norms * _ODD_NORM < usual)) if usual > 0 else 0
    if not odd:
        return []
    return [
        f"{odd} of {len(norms)} vectors have unusual norms, {norms.min():.3g} to {norms.max():.3g}; "
        f"the model's embeddings have {usual:.3g} on average. Was it trained on this base, and did training converge?"
    ]


def _odd_prefix(name: str, array: Float32Array) -> list[str]:
    norms = _norms(array)
    if not norms.any():
        return [f"All learned {name} are zero: the adapter looks untrained."]
    if norms.max() <= 1e4:
        return []
    return [
        f"The learned {name} have unusual norms, up to {norms.max():.3g} a head. Was it trained on this base, "
        "and did training converge?"
    ]


def _odd_updates(part: LoraPart, spec: ModelSpec) -> list[str]:
    if not any(layer.b.any() for layer in part.layers.values()):
        return ["Every B of the LoRA is zero: the adapter looks untrained."]
    weights = {linear.name: linear.scale * (linear.inputs * linear.outputs) ** 0.5 for linear in spec.linears}
    ratios = {
        name: _update_norm(layer) / weights[name] for name, layer in part.layers.items() if weights.get(name, 0.0) > 0
    }
    odd = [name for name, ratio in ratios.items() if ratio > _ODD_UPDATE]
    if not odd:
        return []
    most = max(odd, key=ratios.__getitem__)
    return [
        f"{len(odd)} of {len(part.layers)} updates of the LoRA have unusual norms, up to {ratios[most]:.3g} times "
        f"that of the weight ({most}). Was it trained on this base, and did training converge?"
    ]


def _update_norm(layer: LoraLayer) -> float:
    """The Frobenius norm of `scaling · b a`, by way of `[rank, rank]`, in float64: ‖ba‖² = tr(bᵀb · aaᵀ)."""
    a, b = layer.a.astype(np.float64), layer.b.astype(np.float64)
    return abs(layer.scaling) * math.sqrt(max(0.0, float(np.vdot(b.T @ b, a @ a.T))))


def checks(peft_types: list[str], said: SoftmuxJson, manifest: Manifest, spec: ModelSpec) -> tuple[str, ...]:
    """What was looked at, in sentences."""
    done = [
        f"The files are exactly those of an adapter: {', '.join(file.name for file in manifest.files)}.",
        f"{CONFIG_FILE} is a {' and a '.join(peft_types)} config without unknown fields, and nothing in it asks for "
        "code to run.",
        f"Its numbers fit {spec.model_id}: {manifest.virtual_tokens} virtual tokens, "
        f"{manifest.parameters:,} learned numbers of the shapes that {manifest.method} needs.",
        f"{WEIGHTS_FILE} holds exactly the expected tensors, and every value is finite, in {spec.dtype} too.",
    ]
    if manifest.head is not None:
        done.append(f"Its {manifest.head} head has a label for each of its outputs.")
    if said.base_fingerprint or said.tokenizer_fingerprint:
        done.append(f"The fingerprints in {SOFTMUX_FILE} are this server's.")
    if said.template is not None:
        done.append("The template's learned tokens are the adapter's, and its slots have names.")
    return tuple(done)
