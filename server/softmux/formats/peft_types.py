"""Which of PEFT's types, for which kind of task, on which kind of base: what is read, and why the rest is not.

`read_config` refuses by these rules, and the table in the documentation is written from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from softmux.types import Family

_MERGE = (
    "it changes the base's weights in a way that can't be mixed with other tasks' rows: merge it into the base "
    "(`merge_and_unload`) and serve that as a base of its own, or train a LoRA"
)
_NOT_LINEAR = "it acts within the layers and can't be merged either: train a LoRA or PREFIX_TUNING instead"
_ROUTED = "it chooses among several adapters for each input: publish the LoRA it chooses as a task, or train one LoRA"

INSTEAD: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            "ADALORA", "ADAMSS", "BEFT", "BOFT", "BONE", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA",
            "GRALORA", "HIRA", "HRA", "IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT",
            "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "UNILORA", "VBLORA", "VERA",
            "WAVEFT",
        ),
        _MERGE,
    )
    | {"ADAPTION_PROMPT": _NOT_LINEAR, "SHADOW": _NOT_LINEAR, "POLY": _ROUTED, "XLORA": _ROUTED}
)  # fmt: skip
"""PEFT's types that are not served, and what to do instead. PEFT's list is held to this one by a test."""

GENERATES = "CAUSAL_LM"
HEADS = ("SEQ_CLS", "TOKEN_CLS")
TRANSFORMS = "SEQ_2_SEQ_LM"
TASK_TYPES = (GENERATES, *HEADS, TRANSFORMS, "QUESTION_ANS", "FEATURE_EXTRACTION")
"""`task_type` null is read as `CAUSAL_LM`, on an encoder-decoder as `SEQ_2_SEQ_LM`."""

FAMILIES: tuple[Family, ...] = ("decoder", "encoder", "encoder-decoder")

_GENERATIVE_ONLY = ("CPT", "TRAINABLE_TOKENS")
_NOT_ON_PAIRS: Mapping[str, str] = MappingProxyType(
    {
        "CPT": "CPT's tokens are a decoder's context, in PEFT too: train it with PROMPT_TUNING",
        "CARTRIDGE": "a cartridge is distilled from a decoder's cache: train it with PREFIX_TUNING",
        "TRAINABLE_TOKENS": "rows of tokens are shared by an encoder and its decoder, and only decoders serve them: "
        "train a LoRA or PROMPT_TUNING",
    }
)
"""What is not served on encoder-decoders, and why."""
NO_PREFIX = ("deberta", "deberta-v2", "distilbert", "modernbert")
"""Encoders that take no past keys and values, in PEFT neither."""


def why_not(peft_type: str, task_type: str | None, family: Family) -> str | None:
    """Why an adapter of a served PEFT type can't be served for that task on that kind of base; None if it can."""
    task = task_type or (TRANSFORMS if family == "encoder-decoder" else GENERATES)
    if task not in TASK_TYPES:
        return f"it is none of {', '.join(TASK_TYPES)}"
    if task == "QUESTION_ANS":
        return "no route answers with spans: train it as TOKEN_CLS (begin, inside, outside), or as CAUSAL_LM"
    if task == "FEATURE_EXTRACTION":
        return "no route answers with hidden states: train it with the head that uses them, as SEQ_CLS"
    if family == "encoder-decoder":
        if task == TRANSFORMS:
            return _NOT_ON_PAIRS.get(peft_type)
        if task in HEADS:
            return f"an encoder-decoder is served without a head: train it with {TRANSFORMS}, and the label as text"
        return f"this base is an encoder-decoder: train it with {TRANSFORMS}"
    if task == TRANSFORMS:
        return f"it needs an encoder-decoder, and this base is {_a(family)}: train it with CAUSAL_LM on a decoder"
    if task == GENERATES and family == "encoder":
        return "an encoder generates nothing: train it with SEQ_CLS or TOKEN_CLS, or on a decoder"
    if task in HEADS and peft_type in _GENERATIVE_ONLY:
        return f"{peft_type} trains no head in PEFT: train it with CAUSAL_LM"
    return None


def takes_prefix(model_type: str) -> bool:
    """Whether bases of that type can attend to keys and values that were not computed from text."""
    return model_type not in NO_PREFIX


def _a(family: str) -> str:
    return f"an {family}" if family[0] in "aeiou" else f"a {family}"
