"""P-tuning (2103.10385): vectors that an MLP or an LSTM makes in training, wherever a template puts them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from softmux.formats import encoders
from softmux.formats.config import Count, PromptLearningConfig, hidden_size, saved_tokens
from softmux.formats.methods.encoded import Tensors, encoded
from softmux.formats.parts import Parts, PromptPart
from softmux.types import ModelSpec


class PTuningConfig(PromptLearningConfig):
    """`encoder_hidden_size` null means `token_dim`, as in PEFT."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: Count | None = None
    encoder_num_layers: Annotated[int, Field(strict=True, ge=1, le=64)] = 2
    encoder_dropout: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0.0


def read_p_tuning(config: PTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    dim = hidden_size(config, spec)
    k, hidden, layers = saved_tokens(config, spec), config.encoder_hidden_size or dim, config.encoder_num_layers
    if config.encoder_reparameterization_type == "LSTM":
        shapes = encoders.lstm_shapes(k, dim, hidden, layers)
        vectors = encoded(tensors, (k, dim), shapes, lambda weights: encoders.fold_lstm(weights, layers))
    else:
        vectors = encoded(tensors, (k, dim), encoders.mlp_shapes(k, dim, hidden), encoders.fold_mlp)
    return (PromptPart(vectors[: config.num_virtual_tokens]),)
