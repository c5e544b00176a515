"""Learned vectors at the input: prompt tuning (2104.08691), multitask prompt tuning (2303.02861), CPT (2410.17222)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, StrictStr

from softmux.errors import InvalidAdapter
from softmux.formats import encoders
from softmux.formats.config import (
    Count,
    Label,
    PromptLearningConfig,
    TokenIds,
    hidden_size,
    invalid_field,
    saved_tokens,
)
from softmux.formats.methods.encoded import SAVED, Tensors, encoded
from softmux.formats.parts import Float32Array, Parts, PromptPart
from softmux.formats.tensors import expect, invalid_tensor
from softmux.types import ModelSpec

Factor = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False)]


class PromptTuningConfig(PromptLearningConfig):
    prompt_tuning_init: StrictStr | None = None
    prompt_tuning_init_text: StrictStr | None = None
    tokenizer_name_or_path: Label | None = None
    tokenizer_kwargs: dict[str, Any] | None = None


class MultitaskConfig(PromptTuningConfig):
    """`prompt_tuning_init_task` says what training began with, not which task is served."""

    prompt_tuning_init_state_dict_path: Label | None = None
    prompt_tuning_init_task: Annotated[int, Field(strict=True, ge=0)] | None = None
    num_ranks: Count | None = None
    num_tasks: Count | None = None


class CptConfig(PromptLearningConfig):
    """The masks and factors shaped the training; `opt_projection_…` bounds the learned deltas, by token's kind."""

    cpt_token_ids: TokenIds | None = None
    cpt_mask: TokenIds | None = None
    cpt_tokens_type_mask: TokenIds | None = None
    opt_weighted_loss_type: Literal["none", "decay"] | None = None
    opt_loss_decay_factor: Factor | None = None
    opt_projection_epsilon: Factor | None = None
    opt_projection_format_epsilon: Factor | None = None
    tokenizer_name_or_path: Label | None = None


def read_prompt_tuning(config: PromptTuningConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    saved = expect(tensors, {SAVED: (saved_tokens(config, spec), hidden_size(config, spec))})[SAVED]
    return (PromptPart(saved[: config.num_virtual_tokens]),)


def read_multitask(config: MultitaskConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    """One task's vectors, folded. Raises `InvalidAdapter` where there are several: nothing says which is meant."""
    tasks = config.num_tasks or 1
    if tasks > 1:
        raise invalid_field(
            "num_tasks",
            f"the folder holds {tasks} tasks, and a version is one. Take each out as a folder of its own, and publish "
            "those: `softmux fold DIR --task-id N --out DIR-N`.",
        )
    folded = fold_task(config, tensors, hidden_size(config, spec), 0, saved_tokens(config, spec))
    return (PromptPart(folded[: config.num_virtual_tokens]),)


def fold_task(config: MultitaskConfig, tensors: Tensors, dim: int, task: int, k: int | None = None) -> Float32Array:
    """`[k, dim]`: the shared prompt times, element by element, the task's low-rank matrix (2303.02861, eq. 1). `k`: how
    many vectors were saved, where the config does not say it."""
    k = k or config.num_virtual_tokens * (config.num_transformer_submodules or 1)
    tasks, ranks = config.num_tasks or 1, config.num_ranks or 1
    weights = expect(
        tensors,
        {SAVED: (k, dim), "prefix_task_cols": (tasks, k, ranks), "prefix_task_rows": (tasks, ranks, dim)},
    )
    with np.errstate(over="ignore", invalid="ignore"):
        folded = weights[SAVED] * (weights["prefix_task_cols"][task] @ weights["prefix_task_rows"][task])
    if not np.isfinite(folded).all():
        raise invalid_tensor("prefix_task_rows", "the folded prompt is NaN or infinite; train it again.")
    return np.ascontiguousarray(folded)


def read_cpt(config: CptConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    k, dim = config.num_virtual_tokens, hidden_size(config, spec)
    for field in ("cpt_token_ids", "cpt_mask", "cpt_tokens_type_mask"):
        values = getattr(config, field)
        if values is not None and len(values) != k:
            raise _unlike(field, len(values), k)
    types = np.asarray(config.cpt_tokens_type_mask or [1] * k, dtype=np.int64)
    bounds = encoders.cpt_bounds(
        types, dim, _or(config.opt_projection_epsilon), _or(config.opt_projection_format_epsilon)
    )
    shapes: encoders.Shapes = {"embedding.weight": (k, dim), "delta_embedding.weight": (k, dim)}
    return (PromptPart(encoded(tensors, (k, dim), shapes, lambda weights: encoders.fold_cpt(weights, bounds))),)


def _or(epsilon: float | None) -> float:
    return 0.1 if epsilon is None else epsilon


def _unlike(field: str, count: int, k: int) -> InvalidAdapter:
    return invalid_field(field, f"it has {count} entries, and there are {k} virtual tokens; both must be equal.")
