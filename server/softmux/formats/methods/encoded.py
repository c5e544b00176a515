"""A prompt encoder's result: as PEFT saves it, or folded from the trained encoder's own weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from softmux.formats import encoders
from softmux.formats.json_file import shown
from softmux.formats.parts import Float32Array
from softmux.formats.tensors import Tensor, expect, invalid_tensor

SAVED = "prompt_embeddings"
"""The one tensor PEFT saves, whatever the method: what the trained encoder computes."""

_HEADS = ("mlp_head.", "lstm_head.")
"""PEFT takes these layers of an encoder for a module of the base that is called `head`: where it is told to save that,
it saves them, too, without what they are given."""
_FOLD_TOLERANCE = 1e-3

Tensors = Mapping[str, Tensor]


def encoded(
    tensors: Tensors,
    saved_shape: tuple[int, int],
    encoder_shapes: encoders.Shapes,
    fold: Callable[[encoders.Weights], Float32Array],
) -> Float32Array:
    """What the prompt encoder computes: as saved, or folded from its weights; where both are there they must agree."""
    encoder: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        inner = _name_in_encoder(name, encoder_shapes)
        if inner is None:
            rest[name] = tensor
        elif inner in encoder:
            raise invalid_tensor(name, f"it and “{shown(encoder[inner].name)}” are the same weight; send it once.")
        else:
            encoder[inner] = tensor
    if not encoder:
        return expect(rest, {SAVED: saved_shape})[SAVED]
    saved = expect(rest, {SAVED: saved_shape})[SAVED] if rest else None
    if saved is not None and all(inner.startswith(_HEADS) for inner in encoder):
        expect(encoder, {name: shape for name, shape in encoder_shapes.items() if name in encoder})
        return saved
    folded = fold(expect(encoder, encoder_shapes))
    if not np.isfinite(folded).all():
        raise invalid_tensor(
            next(iter(encoder_shapes)), "what the encoder computes from it is NaN or infinite; train it again."
        )
    if saved is None:
        return folded
    if not np.allclose(saved, folded, rtol=_FOLD_TOLERANCE, atol=_FOLD_TOLERANCE):
        raise invalid_tensor(
            SAVED, "it differs from what the encoder's weights beside it compute; send one of the two."
        )
    return saved


def _name_in_encoder(name: str, encoder_shapes: encoders.Shapes) -> str | None:
    """What the encoder itself calls the tensor that PEFT's model calls `prompt_encoder.<adapter's name>.…`."""
    model, _, inside = name.partition("prompt_encoder.")
    candidates = [name, name.removeprefix("default.")]
    if not model:
        candidates += [inside, inside.partition(".")[2]]
    return next((candidate for candidate in candidates if candidate in encoder_shapes), None)
