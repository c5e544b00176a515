"""The prompt encoders PEFT trains with, folded into the vectors they compute: their forward pass in numpy, float32.

PEFT saves the folded result; a folder may hold the trained encoder instead. Weights are `[out, in]`, as in torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from softmux.errors import TooLarge
from softmux.formats.parts import Float32Array

MAX_FOLDED_BYTES = 1 << 30

Shapes = dict[str, tuple[int, ...]]
Weights = Mapping[str, Float32Array]


def mlp_shapes(virtual_tokens: int, dim: int, hidden: int) -> Shapes:
    """The tensors of PEFT's `PromptEncoder` with an MLP."""
    return {"embedding.weight": (virtual_tokens, dim)} | _linear_shapes(
        {"mlp_head.0": (hidden, dim), "mlp_head.2": (hidden, hidden), "mlp_head.4": (dim, hidden)}
    )


def lstm_shapes(virtual_tokens: int, dim: int, hidden: int, layers: int) -> Shapes:
    """The tensors of PEFT's `PromptEncoder` with a bidirectional LSTM of `layers` layers and a two-layer head."""
    shapes: Shapes = {"embedding.weight": (virtual_tokens, dim)}
    for layer in range(layers):
        inputs = dim if layer == 0 else 2 * hidden
        for way in ("", "_reverse"):
            shapes[f"lstm_head.weight_ih_l{layer}{way}"] = (4 * hidden, inputs)
            shapes[f"lstm_head.weight_hh_l{layer}{way}"] = (4 * hidden, hidden)
            shapes[f"lstm_head.bias_ih_l{layer}{way}"] = (4 * hidden,)
            shapes[f"lstm_head.bias_hh_l{layer}{way}"] = (4 * hidden,)
    return shapes | _linear_shapes({"mlp_head.0": (2 * hidden, 2 * hidden), "mlp_head.2": (dim, 2 * hidden)})


def projection_shapes(virtual_tokens: int, dim: int, hidden: int, layers: int) -> Shapes:
    """The tensors of PEFT's `PrefixEncoder` with `prefix_projection`."""
    return {"embedding.weight": (virtual_tokens, dim)} | _linear_shapes(
        {"transform.0": (hidden, dim), "transform.2": (layers * 2 * dim, hidden)}
    )


def _linear_shapes(layers: dict[str, tuple[int, int]]) -> Shapes:
    shapes: Shapes = {}
    for name, (outputs, inputs) in layers.items():
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)
    return shapes


def fold_mlp(weights: Weights) -> Float32Array:
    """`[k, dim]`: linear, ReLU, linear, ReLU, linear over the embedding."""
    with np.errstate(over="ignore", invalid="ignore"):
        hidden = _relu(_linear(weights, "mlp_head.0", weights["embedding.weight"]))
        return _linear(weights, "mlp_head.4", _relu(_linear(weights, "mlp_head.2", hidden)))


def fold_lstm(weights: Weights, layers: int) -> Float32Array:
    """`[k, dim]`: the LSTM over the embedding's rows as a sequence, both ways, then linear, ReLU, linear."""
    with np.errstate(over="ignore", invalid="ignore"):
        sequence = weights["embedding.weight"]
        for layer in range(layers):
            forward = _lstm(weights, f"l{layer}", sequence)
            backward = _lstm(weights, f"l{layer}_reverse", sequence[::-1])[::-1]
            sequence = np.concatenate([forward, backward], axis=1)
        return _linear(weights, "mlp_head.2", _relu(_linear(weights, "mlp_head.0", sequence)))


def fold_projection(weights: Weights) -> Float32Array:
    """`[k, layers · 2 · dim]`: linear, tanh, linear over the embedding."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _linear(weights, "transform.2", np.tanh(_linear(weights, "transform.0", weights["embedding.weight"])))


def _linear(weights: Weights, name: str, inputs: Float32Array) -> Float32Array:
    weight = weights[f"{name}.weight"]
    if inputs.shape[0] * weight.shape[0] * 4 > MAX_FOLDED_BYTES:
        # A few bytes of weights can stand for very many values; nobody trains such an encoder.
        raise TooLarge(
            f"Folding {name} would make {inputs.shape[0]} × {weight.shape[0]} values, more than "
            f"{MAX_FOLDED_BYTES:,} bytes; train with fewer virtual tokens.",
            param=f"adapter_model.safetensors: {name}.weight",
        )
    return inputs @ weight.T + weights[f"{name}.bias"]


def _relu(values: Float32Array) -> Float32Array:
    return np.maximum(values, np.float32(0))


def _sigmoid(values: Float32Array) -> Float32Array:
    # By tanh, so that large negative values do not overflow in exp.
    half = np.float32(0.5)
    return np.asarray(half * np.tanh(half * values) + half, dtype=np.float32)


def _lstm(weights: Weights, suffix: str, sequence: Float32Array) -> Float32Array:
    """One direction of one layer, from zero states. `[k, in]` to `[k, hidden]`; gates in torch's order i, f, g, o."""
    recurrent = weights[f"lstm_head.weight_hh_{suffix}"].T
    bias = weights[f"lstm_head.bias_ih_{suffix}"] + weights[f"lstm_head.bias_hh_{suffix}"]
    inputs = weights[f"lstm_head.weight_ih_{suffix}"].T
    hidden = np.zeros(recurrent.shape[0], dtype=np.float32)
    cell = np.zeros_like(hidden)
    outputs = np.empty((len(sequence), len(hidden)), dtype=np.float32)
    for position, vector in enumerate(sequence):
        into, keep, new, out = np.split(vector @ inputs + hidden @ recurrent + bias, 4)
        cell = _sigmoid(keep) * cell + _sigmoid(into) * np.tanh(new)
        hidden = _sigmoid(out) * np.tanh(cell)
        outputs[position] = hidden
    return outputs


def cpt_bounds(types: NDArray[np.int64], dim: int, epsilon: float, format_epsilon: float) -> Float32Array:
    """`[k]`: how long a delta PEFT's `CPTEmbedding` lets each token have. A type's remainder by 4 says what it is:
    1 and 3 the format around input and output, 2 the input, 0 the output (left as it was)."""
    scale = np.sqrt(np.float32(dim / 2048))
    bounds = np.full(types.shape, 1e-10, dtype=np.float32)
    bounds[(types > 0) & ((types % 4 == 1) | (types % 4 == 3))] = np.float32(format_epsilon) * scale
    bounds[(types > 0) & (types % 4 == 2)] = np.float32(epsilon) * scale
    return bounds


def fold_cpt(weights: Weights, bounds: Float32Array) -> Float32Array:
    """`[k, dim]`: the context's embeddings and their deltas, each delta shortened to its bound."""
    delta = weights["delta_embedding.weight"]
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(delta, axis=1)
        factors = np.where(norms > 0, bounds / np.maximum(np.maximum(norms, bounds), np.float32(1e-30)), np.float32(1))
        folded: Float32Array = weights["embedding.weight"] + delta * factors[:, None].astype(np.float32)
        return folded


def fold_cartridge(weights: Weights) -> Float32Array:
    """`[k, layers · 2 · dim]`: the frozen tokens, then the trained."""
    return np.concatenate([weights[name] for name in ("frozen_embedding", "trainable_embedding") if name in weights])
