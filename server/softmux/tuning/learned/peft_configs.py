"""PEFT's configs of what a recipe's method learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning, PTuning

try:
    from peft import LoraConfig, PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error


def lora_config(recipe: Lora | LoraPrefixTuning, task_type: str, saved: Sequence[str] | None = None) -> PeftConfig:
    """`saved`: modules that are trained and saved whole, beside those that PEFT knows of a task's type."""
    return LoraConfig(
        task_type=task_type,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        target_modules=recipe.target_modules,
        modules_to_save=list(saved) if saved else None,
    )


def soft_config(
    recipe: PromptTuning | PTuning | PrefixTuning | LoraPrefixTuning,
    task_type: str,
    tokenizer: Any,
    *,
    vectors: Mapping[str, Any] | None = None,
    prefixes: Mapping[str, Any] | None = None,
    saved: Sequence[str] | None = None,
) -> PeftConfig:
    """Of a soft prompt, or of that of a pair. `vectors`, `prefixes`: what these need to be told on this kind of base;
    `saved`: as of `lora_config`."""
    common: dict[str, Any] = {
        "task_type": task_type,
        "num_virtual_tokens": recipe.virtual_tokens,
        "modules_to_save": list(saved) if saved else None,
    }
    if isinstance(recipe, PrefixTuning | LoraPrefixTuning):
        common |= {"prefix_projection": recipe.projected, "encoder_hidden_size": recipe.encoder_hidden_size}
        return PrefixTuningConfig(**common, **(prefixes or {}))
    common |= vectors or {}
    if isinstance(recipe, PromptTuning):
        if recipe.begins != "text":
            sampled = recipe.begins == "sampled"
            return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB" if sampled else "RANDOM", **common)
        return PromptTuningConfig(
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text=recipe.init_text,
            tokenizer_name_or_path=tokenizer.name_or_path,
            **common,
        )
    return PromptEncoderConfig(
        encoder_reparameterization_type=recipe.encoder, encoder_hidden_size=recipe.encoder_hidden_size, **common
    )
