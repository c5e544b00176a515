"""`adapter_config.json` as PEFT 0.5 to 0.21 writes it: closed schemas, and what every method's has in common.

Names of models, tokenizers and revisions in it are labels: kept, shown, never opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from softmux.errors import InvalidAdapter, SoftmuxError
from softmux.formats.json_file import fit, read_object, shown
from softmux.formats.peft_types import HEADS, INSTEAD, why_not
from softmux.types import ModelSpec, ProblemType

CONFIG_FILE = "adapter_config.json"

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
Label = Annotated[str, Field(strict=True, max_length=4096)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]
Names = Annotated[list[Name], Field(max_length=4096)]
TokenIds = Annotated[list[Annotated[int, Field(strict=True, ge=0, le=1 << 31)]], Field(max_length=1 << 16)]

_EXECUTING = frozenset({"auto_mapping", "auto_map", "trust_remote_code"})
"""Fields by which a loader would import code. Null is nothing; anything else is refused, at any depth."""

_HEAD_MODULES = frozenset({"classifier", "score", "pooler", "pre_classifier", "head"})
"""Modules that may be saved whole: the heads PEFT adds by itself, and what some encoders have before them."""


class AdapterConfig(BaseModel):
    """The fields of every method. Beside PEFT's own, `id2label`, `num_labels` and `problem_type` may say what a
    head's outputs mean, as a transformers config says it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    peft_type: StrictStr
    task_type: StrictStr | None = None
    peft_version: Label | None = None
    inference_mode: StrictBool = True
    base_model_name_or_path: Label | None = None
    revision: Label | None = None
    auto_mapping: None = None
    auto_map: None = None
    trust_remote_code: None = None
    modules_to_save: list[StrictStr] | None = None
    id2label: Annotated[dict[StrictStr, Name], Field(min_length=1, max_length=1024)] | None = None
    label2id: Annotated[dict[Name, StrictInt], Field(max_length=1024)] | None = None
    num_labels: Count | None = None
    problem_type: ProblemType | None = None

    @property
    def has_head(self) -> bool:
        return self.task_type in HEADS


class PromptLearningConfig(AdapterConfig):
    """The fields that PEFT writes for every prompt-learning method. Numbers may be null: PEFT fills them on use."""

    num_virtual_tokens: Annotated[int, Field(strict=True, le=1 << 24)]
    token_dim: Count | None = None
    num_transformer_submodules: Annotated[int, Field(strict=True)] | None = None
    num_attention_heads: Count | None = None
    num_layers: Count | None = None


def invalid_field(field: str, message: str) -> InvalidAdapter:
    return InvalidAdapter(f"{CONFIG_FILE}: {message}", param=f"{CONFIG_FILE}: {field}")


def saved_tokens(config: PromptLearningConfig, spec: ModelSpec) -> int:
    """How many vectors PEFT saves: for an encoder-decoder twice as many, unless told otherwise, of which it gives the
    first half to the encoder, and the rest to nobody."""
    default = 2 if spec.family == "encoder-decoder" else 1
    return config.num_virtual_tokens * (config.num_transformer_submodules or default)


def hidden_size(config: PromptLearningConfig, spec: ModelSpec) -> int:
    """The width of a learned vector."""
    if config.token_dim not in (None, spec.hidden_size):
        raise invalid_field(
            "token_dim",
            f"vectors of {config.token_dim} numbers, but {spec.model_id} has a hidden size of {spec.hidden_size}; "
            "train it on this base.",
        )
    return spec.hidden_size


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) of the objects in `value`, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _named(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner)


def _refuse_code(raw: dict[str, Any]) -> None:
    for key, value in _named(raw):
        if key in _EXECUTING and value is not None:
            raise invalid_field(
                key,
                f"“{key}” would make a loader import or run code, and this server does neither. Set it to null"
                + (' and "task_type" to "CAUSAL_LM".' if key == "auto_mapping" else "."),
            )


def _refuse_unserved(config: AdapterConfig, spec: ModelSpec, task: str | None) -> None:
    """What PEFT can express and this server would serve wrongly."""
    reason = why_not(config.peft_type, config.task_type or task, spec.family)
    if reason is not None:
        raise invalid_field("task_type", f"“{shown(config.task_type)}” can't be served on {spec.model_id}: {reason}.")
    saved = config.modules_to_save
    if saved is not None and not config.has_head:
        raise invalid_field(
            "modules_to_save", "an adapter that replaces modules of the base is not served; train it without them."
        )
    for name in saved or ():
        if name.rpartition(".")[2] not in _HEAD_MODULES:
            raise invalid_field(
                "modules_to_save",
                f"“{shown(name)}” is a module of the base, and an adapter that replaces one is not served; only a "
                f"head may be saved whole ({', '.join(sorted(_HEAD_MODULES))}).",
            )
    for field in ("id2label", "label2id", "num_labels", "problem_type"):
        if getattr(config, field) is not None and not config.has_head:
            raise invalid_field(field, f"“{field}” describes a head, and the task type {config.task_type} has none.")


def _check_against(config: PromptLearningConfig, spec: ModelSpec) -> None:
    """The numbers every prompt-learning method shares, against the running model."""
    submodules = config.num_transformer_submodules
    if spec.family != "encoder-decoder" and submodules not in (None, 1):
        raise invalid_field(
            "num_transformer_submodules",
            f"{submodules} submodules are an encoder-decoder's; a causal model has 1.",
        )
    if submodules not in (None, 1, 2):
        raise invalid_field("num_transformer_submodules", f"{submodules} submodules; an encoder-decoder has 2.")
    if config.num_virtual_tokens < 1:
        raise invalid_field(
            "num_virtual_tokens", f"{config.num_virtual_tokens} virtual tokens learn nothing; at least 1 is needed."
        )
    if config.num_virtual_tokens >= spec.context_length:
        raise invalid_field(
            "num_virtual_tokens",
            f"{config.num_virtual_tokens} virtual tokens leave no room for text in the model's context of "
            f"{spec.context_length} tokens; train with fewer.",
        )
    if spec.family != "encoder-decoder" and config.num_layers not in (None, len(spec.layers)):
        raise invalid_field(
            "num_layers",
            f"made for a model of {config.num_layers} layers, but {spec.model_id} has {len(spec.layers)}; "
            "train it on this base.",
        )


def read_config(
    data: bytes, schemas: Mapping[str, type[AdapterConfig]], spec: ModelSpec, task: str | None = None
) -> AdapterConfig:
    """The config in `data`, of the schema that `schemas` names for its `peft_type`, checked against `spec`. `task`: the
    task type of what it is a pair with, if it names none itself.

    Raises `InvalidAdapter` naming the field.
    """
    raw = read_object(data, CONFIG_FILE)
    _refuse_code(raw)
    peft_type = raw.get("peft_type")
    served = ", ".join(sorted(schemas))
    if not isinstance(peft_type, str):
        raise invalid_field("peft_type", f"it must be there and name the method, one of {served}.")
    if peft_type not in schemas:
        instead = INSTEAD.get(peft_type, "train it with one of those")
        raise invalid_field("peft_type", f"“{shown(peft_type)}” is not one of {served}: {instead}.")
    config = fit(schemas[peft_type], raw, CONFIG_FILE)
    _refuse_unserved(config, spec, task)
    if isinstance(config, PromptLearningConfig):
        _check_against(config, spec)
    return config


def base_label(data: bytes) -> str | None:
    """What the config in `data` names as its base, if it can be read: to tell a person, never to open."""
    try:
        label = read_object(data, CONFIG_FILE).get("base_model_name_or_path")
    except SoftmuxError:
        return None
    return label if isinstance(label, str) else None
