"""PEFT's own config objects as methods of ours: what is learned from one is what PEFT would learn from it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from softmux.errors import InvalidRequest
from softmux.formats.peft_types import GENERATES, HEADS, TRANSFORMS, why_not
from softmux.tuning.learned.headed import Headed
from softmux.tuning.recipes.recipe import Lora, PrefixTuning, PromptTuning, PTuning
from softmux.types import Family

Method = PromptTuning | PTuning | PrefixTuning | Lora

_TAKEN = {
    "PROMPT_TUNING": {"num_virtual_tokens", "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path"},
    "P_TUNING": {"num_virtual_tokens", "encoder_reparameterization_type", "encoder_hidden_size"},
    "PREFIX_TUNING": {"num_virtual_tokens", "prefix_projection", "encoder_hidden_size"},
    "LORA": {"r", "lora_alpha", "target_modules"},
}
_LABELS = {
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "auto_mapping",
    "peft_version",
}
_SIZES = {"token_dim", "num_layers", "num_attention_heads", "num_transformer_submodules", "runtime_config"}
_INITS: dict[str, Any] = {"TEXT": "text", "SAMPLE_VOCAB": "sampled", "RANDOM": "random"}
_HEADS = {"classifier", "score"}
"""What a head's module is called; PEFT saves it whether `modules_to_save` says so or not."""


def method_of(config: Any, family: Family = "decoder") -> Method | Headed:
    """The method that a `PeftConfig` asks for, on that kind of base. Raises `InvalidRequest` for a type that is not
    tuned here, for what is no config, for a task's type that the base is not for, and for an option that would be
    ignored."""
    if getattr(config, "peft_type", None) is None:
        raise InvalidRequest(
            f"{repr(config)[:80]} is no method: give one of softmux.tuning's, as Lora(…), or a config object of "
            "PEFT's, as LoraConfig(…).",
            param="method",
        )
    kind = _plain(config.peft_type)
    if kind not in _TAKEN:
        raise InvalidRequest(f"{kind} is not tuned by softmux: {', '.join(sorted(_TAKEN))} are.", param="method")
    task = None if config.task_type is None else _plain(config.task_type)
    if refusal := why_not(kind, task, family):
        said = f"task_type = {task}" if task else "The config has no task_type"
        raise InvalidRequest(f"{said}: {refusal}.", param="task_type")
    with_head = task in HEADS
    blank = type(config)()
    for field in fields(config):
        if field.name in _TAKEN[kind] | _LABELS | _SIZES or (with_head and field.name == "modules_to_save"):
            continue
        if getattr(config, field.name) != getattr(blank, field.name):
            raise InvalidRequest(
                f"{field.name} = {getattr(config, field.name)!r} is not tuned so by softmux.", param=field.name
            )
    method = _method(kind, config)
    if not with_head:
        assert task in (None, GENERATES, TRANSFORMS)
        return method
    return Headed(method, "sequence" if task == "SEQ_CLS" else "token", _saves_pooler(config, task))


def _method(kind: str, config: Any) -> Method:
    if kind == "PROMPT_TUNING":
        init = _plain(config.prompt_tuning_init)
        return PromptTuning(
            kind="prompt_tuning",
            virtual_tokens=config.num_virtual_tokens,
            init=_INITS[init],
            init_text=config.prompt_tuning_init_text if init == "TEXT" else None,
        )
    if kind == "P_TUNING":
        encoder: Any = _plain(config.encoder_reparameterization_type)
        return PTuning(
            kind="p_tuning",
            virtual_tokens=config.num_virtual_tokens,
            encoder=encoder,
            encoder_hidden_size=config.encoder_hidden_size,
        )
    if kind == "PREFIX_TUNING":
        return PrefixTuning(
            kind="prefix_tuning",
            virtual_tokens=config.num_virtual_tokens,
            projection=config.prefix_projection,
            encoder_hidden_size=config.encoder_hidden_size,
        )
    if isinstance(config.target_modules, str):
        raise InvalidRequest("target_modules is a list of modules' names here.", param="target_modules")
    modules = sorted(config.target_modules) if config.target_modules else None
    return Lora(kind="lora", rank=config.r, alpha=config.lora_alpha, target_modules=modules)


def _saves_pooler(config: Any, task: str | None) -> bool:
    """Whether `modules_to_save` names the pooler, beside heads. Raises `InvalidRequest` for any other module."""
    saved = set(config.modules_to_save or ())
    if others := sorted(saved - _HEADS - ({"pooler"} if task == "SEQ_CLS" else set())):
        raise InvalidRequest(
            f"modules_to_save names {', '.join(others)}, and beside what is learned softmux trains the head alone "
            "(classifier, score), and of a sequence's the pooler before it: leave the others out.",
            param="modules_to_save",
        )
    return "pooler" in saved


def _plain(value: Any) -> str:
    """An option that is an enumeration's, or a string already."""
    return str(getattr(value, "value", value))
