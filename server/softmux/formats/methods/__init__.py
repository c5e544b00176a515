"""The methods read, a row of `METHODS` each: PEFT's name, ours, its config's schema, how its tensors are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from softmux.formats.config import AdapterConfig
from softmux.formats.methods.encoded import Tensors
from softmux.formats.methods.lora import LoraConfig, read_lora
from softmux.formats.methods.p_tuning import PTuningConfig, read_p_tuning
from softmux.formats.methods.prefix import CartridgeConfig, PrefixTuningConfig, read_cartridge, read_prefix_tuning
from softmux.formats.methods.prompt import (
    CptConfig,
    MultitaskConfig,
    PromptTuningConfig,
    read_cpt,
    read_multitask,
    read_prompt_tuning,
)
from softmux.formats.methods.token_rows import TrainableTokensConfig, read_trainable_tokens
from softmux.formats.parts import Parts
from softmux.types import Method, ModelSpec


@dataclass(frozen=True, slots=True)
class MethodFormat:
    """`read(config, tensors, spec)` gives the parts, or raises `InvalidAdapter` naming the field or tensor. A head's
    tensors are read apart from it (`softmux.formats.methods.head`). `kinds` are the kinds of its own parts."""

    method: Method
    config: type[AdapterConfig]
    read: Callable[[Any, Tensors, ModelSpec], Parts]
    kinds: frozenset[str]


_PROMPT, _PREFIX = frozenset({"prompt"}), frozenset({"prefix"})

METHODS: Mapping[str, MethodFormat] = MappingProxyType(
    {
        "PROMPT_TUNING": MethodFormat("prompt_tuning", PromptTuningConfig, read_prompt_tuning, _PROMPT),
        "MULTITASK_PROMPT_TUNING": MethodFormat("prompt_tuning", MultitaskConfig, read_multitask, _PROMPT),
        "P_TUNING": MethodFormat("p_tuning", PTuningConfig, read_p_tuning, _PROMPT),
        "CPT": MethodFormat("cpt", CptConfig, read_cpt, _PROMPT),
        "PREFIX_TUNING": MethodFormat("prefix_tuning", PrefixTuningConfig, read_prefix_tuning, _PREFIX),
        "CARTRIDGE": MethodFormat("cartridge", CartridgeConfig, read_cartridge, _PREFIX),
        "LORA": MethodFormat("lora", LoraConfig, read_lora, frozenset({"lora"})),
        "TRAINABLE_TOKENS": MethodFormat(
            "trainable_tokens", TrainableTokensConfig, read_trainable_tokens, frozenset({"token_rows"})
        ),
    }
)
