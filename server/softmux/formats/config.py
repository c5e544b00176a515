"""`adapter_config.json` as PEFT 0.5 to 0.21 writes it for the methods served here: a closed schema.

Names of models, tokenizers and revisions in it are labels: kept, shown, never opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from softmux.errors import InvalidAdapter
from softmux.formats.json_file import fit, read_object, shown
from softmux.types import ModelSpec

CONFIG_FILE = "adapter_config.json"

Count = Annotated[int, Field(strict=True, ge=1, le=1 << 24)]
Label = Annotated[str, Field(strict=True, max_length=4096)]

_EXECUTING = frozenset({"auto_mapping", "auto_map", "trust_remote_code"})
"""Fields by which a loader would import code. Null is nothing; anything else is refused, at any depth."""

_INSTEAD = {
    "LORA": "LoRA is not served by this server yet: merge it into the base model (`merge_and_unload`) and serve that",
    "MULTITASK_PROMPT_TUNING": "publish one prompt-tuning adapter for each of its tasks",
    "CPT": "train it as PROMPT_TUNING, with the context text as the initial text",
    "CARTRIDGE": "CARTRIDGE is not served by this server yet: train it as PREFIX_TUNING",
}


class PromptLearningConfig(BaseModel):
    """The fields that PEFT writes for every prompt-learning method. Numbers may be null: PEFT fills them on use."""

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
    num_virtual_tokens: Annotated[int, Field(strict=True, le=1 << 24)]
    token_dim: Count | None = None
    num_transformer_submodules: Annotated[int, Field(strict=True)] | None = None
    num_attention_heads: Count | None = None
    num_layers: Count | None = None


class PromptTuningConfig(PromptLearningConfig):
    prompt_tuning_init: StrictStr | None = None
    prompt_tuning_init_text: StrictStr | None = None
    tokenizer_name_or_path: Label | None = None
    tokenizer_kwargs: dict[str, Any] | None = None


class PTuningConfig(PromptLearningConfig):
    """`encoder_hidden_size` null means `token_dim`, as in PEFT."""

    encoder_reparameterization_type: Literal["MLP", "LSTM"] = "MLP"
    encoder_hidden_size: Count | None = None
    encoder_num_layers: Annotated[int, Field(strict=True, ge=1, le=64)] = 2
    encoder_dropout: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0.0


class PrefixTuningConfig(PromptLearningConfig):
    """`token_dim` is kv_heads · head_dim and `num_attention_heads` is kv_heads, as PEFT sets them for GQA too."""

    init_weights: StrictStr | None = None
    encoder_hidden_size: Count | None = None
    prefix_projection: StrictBool = False


def invalid_field(field: str, message: str) -> InvalidAdapter:
    return InvalidAdapter(f"{CONFIG_FILE}: {message}", param=f"{CONFIG_FILE}: {field}")


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


def _refuse_unserved(config: PromptLearningConfig) -> None:
    """What PEFT can express and this server would serve wrongly."""
    if config.task_type not in (None, "CAUSAL_LM"):
        raise invalid_field(
            "task_type",
            f"“{shown(config.task_type)}” can't be served on a causal language model; train it with CAUSAL_LM.",
        )
    if config.modules_to_save is not None:
        raise invalid_field(
            "modules_to_save", "an adapter that replaces modules of the base is not served; train it without them."
        )
    if config.num_transformer_submodules not in (None, 1):
        raise invalid_field(
            "num_transformer_submodules",
            f"{config.num_transformer_submodules} submodules are an encoder-decoder's; a causal model has 1.",
        )


def _check_against(config: PromptLearningConfig, spec: ModelSpec) -> None:
    """The numbers every method shares, against the running model."""
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
    if config.num_layers not in (None, len(spec.layers)):
        raise invalid_field(
            "num_layers",
            f"made for a model of {config.num_layers} layers, but {spec.model_id} has {len(spec.layers)}; "
            "train it on this base.",
        )


def read_config(data: bytes, schemas: dict[str, type[PromptLearningConfig]], spec: ModelSpec) -> PromptLearningConfig:
    """The config in `data`, of the schema that `schemas` names for its `peft_type`, checked against `spec`.

    Raises `InvalidAdapter` naming the field.
    """
    raw = read_object(data, CONFIG_FILE)
    _refuse_code(raw)
    peft_type = raw.get("peft_type")
    served = ", ".join(sorted(schemas))
    if not isinstance(peft_type, str):
        raise invalid_field("peft_type", f"it must be there and name the method, one of {served}.")
    if peft_type not in schemas:
        instead = _INSTEAD.get(peft_type, "train it with one of those, or serve it merged into its base model")
        raise invalid_field("peft_type", f"“{shown(peft_type)}” is not one of {served}: {instead}.")
    config = fit(schemas[peft_type], raw, CONFIG_FILE)
    _refuse_unserved(config)
    _check_against(config, spec)
    return config
