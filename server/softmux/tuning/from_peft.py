"""PEFT's own config objects as methods of ours: what is learned from one is what PEFT would learn from it."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from softmux.errors import InvalidRequest
from softmux.tuning.recipe import Lora, PrefixTuning, PromptTuning, PTuning

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


def method_of(config: Any, task_type: str = "CAUSAL_LM") -> Method:
    """The method that a `PeftConfig` asks for, of a task of that type. Raises `InvalidRequest` for a type that is not
    tuned here, and for an option that would be ignored."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in _TAKEN:
        raise InvalidRequest(f"{kind} is not tuned by softmux: {', '.join(sorted(_TAKEN))} are.", param="method")
    if (task := str(getattr(config.task_type, "value", config.task_type))) not in (task_type, "None"):
        raise InvalidRequest(
            f"The config's task_type is {task}, and a task that generates on this base has {task_type}.",
            param="task_type",
        )
    text = "TEXT" if kind == "PROMPT_TUNING" and config.prompt_tuning_init == "TEXT" else None
    plain = type(config)()
    for field in fields(config):
        if field.name in _TAKEN[kind] | _LABELS | _SIZES:
            continue
        if getattr(config, field.name) != getattr(plain, field.name):
            raise InvalidRequest(
                f"{field.name} = {getattr(config, field.name)!r} is not tuned so by softmux.", param=field.name
            )
    if kind == "PROMPT_TUNING":
        init = str(getattr(config.prompt_tuning_init, "value", config.prompt_tuning_init))
        return PromptTuning(
            kind="prompt_tuning",
            virtual_tokens=config.num_virtual_tokens,
            init=_INITS[init],
            init_text=config.prompt_tuning_init_text if text else None,
        )
    if kind == "P_TUNING":
        encoder = config.encoder_reparameterization_type
        return PTuning(
            kind="p_tuning",
            virtual_tokens=config.num_virtual_tokens,
            encoder=getattr(encoder, "value", encoder),
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
