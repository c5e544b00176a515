"""LoRA (2106.09685), with rank-stabilised scaling (2312.03732) and rows of trained tokens beside it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt, StrictStr

from softmux.formats.config import AdapterConfig, Names, TokenIds, invalid_field
from softmux.formats.json_file import shown
from softmux.formats.methods.encoded import Tensors
from softmux.formats.methods.targets import Base, Targets
from softmux.formats.methods.token_rows import split_token_rows, token_rows
from softmux.formats.parts import LoraLayer, LoraPart, Parts
from softmux.formats.patterns import Patterns
from softmux.formats.tensors import Tensor, invalid_tensor
from softmux.types import ModelSpec

Pattern = Annotated[str, Field(strict=True, min_length=1, max_length=4096)]
Alpha = Annotated[float, Field(strict=True, ge=0, le=1e9, allow_inf_nan=False)]
Rank = Annotated[int, Field(strict=True, ge=1, le=1 << 16)]
Index = Annotated[int, Field(strict=True, ge=0, le=1 << 16)]

_PREFIX = "base_model.model."
_PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")

_OTHER_TENSORS = (
    ("lora_magnitude_vector", "DoRA scales the base's own weights; train with use_dora=False"),
    ("lora_embedding_", "LoRA on an embedding is not served; train rows of it instead (trainable_token_indices)"),
    (
        ".base_layer.",
        "weights of the base itself are not served; train with bias='none', and save with save_embedding_layers=False",
    ),
    ("lora_B.bias", "a bias beside B is not served; train with lora_bias=False"),
    ("modules_to_save", "save the adapter with PEFT's save_pretrained, which names modules as they are"),
)

_UNSERVED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "bias": (("none",), "trained biases replace the base's; train with bias='none'"),
    "use_dora": ((False,), "DoRA rescales the base's own weights; train with use_dora=False, or merge it"),
    "use_qalora": ((False,), "QA-LoRA pools its input; train with use_qalora=False, or merge it"),
    "lora_bias": ((False,), "a bias beside B is not served; train with lora_bias=False"),
    "target_parameters": ((None, []), "LoRA on bare parameters (experts) is not served; target linear modules"),
    "layer_replication": ((None, []), "it makes another model of the base's layers; serve that as a base"),
    "alora_invocation_tokens": ((None,), "an activated LoRA acts on part of a row only; train a LoRA without it"),
    "use_bdlora": ((None,), "block-diagonal LoRA is not served; train without it, or merge it"),
    "arrow_config": ((None,), "Arrow routes between adapters; publish the one it chooses"),
    "kasa_config": ((None,), "KaSA changes the base's weights; merge it and serve that as a base"),
    "monteclora_config": ((None,), "MonteCLoRA samples its weights; train a plain LoRA"),
    "megatron_config": ((None,), "Megatron's layers are not transformers'; convert the adapter first"),
    "ensure_weight_tying": ((False,), "tie nothing: train with ensure_weight_tying=False"),
}
"""Fields that change the function: the values under which it is a plain LoRA, and what to do about others."""

_INIT_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "mica", "lora_ga")


class LoraConfig(AdapterConfig):
    """Fields that only shaped the training are read and left alone."""

    r: Annotated[int, Field(strict=True)] = 8
    lora_alpha: Alpha = 8
    target_modules: Names | Pattern | None = None
    exclude_modules: Names | Pattern | None = None
    rank_pattern: Annotated[dict[Pattern, Rank], Field(max_length=4096)] | None = None
    alpha_pattern: Annotated[dict[Pattern, Alpha], Field(max_length=4096)] | None = None
    use_rslora: StrictBool = False
    layers_to_transform: Annotated[list[Index], Field(max_length=4096)] | Index | None = None
    layers_pattern: Names | Pattern | None = None
    trainable_token_indices: TokenIds | Annotated[dict[Pattern, TokenIds], Field(max_length=8)] | None = None
    lora_dropout: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.0
    init_lora_weights: StrictBool | StrictStr | None = True
    fan_in_fan_out: StrictBool = False
    megatron_core: StrictStr | None = None
    qalora_group_size: StrictInt | None = None
    loftq_config: dict[str, Any] | None = None
    eva_config: dict[str, Any] | None = None
    corda_config: dict[str, Any] | None = None
    lora_ga_config: dict[str, Any] | None = None
    velora_config: dict[str, Any] | None = None
    runtime_config: dict[str, Any] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    use_dora: StrictBool = False
    use_qalora: StrictBool = False
    lora_bias: StrictBool = False
    ensure_weight_tying: StrictBool = False
    target_parameters: Any = None
    layer_replication: Any = None
    alora_invocation_tokens: Any = None
    use_bdlora: Any = None
    arrow_config: Any = None
    kasa_config: Any = None
    monteclora_config: Any = None
    megatron_config: Any = None


def read_lora(config: LoraConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    """`(LoraPart,)`, behind the rows of trained tokens where there are any."""
    _refuse_variants(config)
    rows, rest = split_token_rows(tensors)
    parts = token_rows(config.trainable_token_indices, rows, "trainable_token_indices", spec)
    pairs = _pairs(rest)
    base = Base(spec, list(pairs))
    patterns = Patterns()
    targets = Targets(config, base, patterns)
    targets.check(pairs)
    layers: dict[str, LoraLayer] = {}
    for module, pair in pairs.items():
        rank = _by_pattern(config.rank_pattern, module, config.r, "rank_pattern", patterns)
        alpha = _by_pattern(config.alpha_pattern, module, config.lora_alpha, "alpha_pattern", patterns)
        scaling = alpha / math.sqrt(rank) if config.use_rslora else alpha / rank
        layers[base.served(module)] = LoraLayer(*_read_pair(pair, module, int(rank), base), scaling)
    return (*parts, LoraPart(layers))


def _refuse_variants(config: LoraConfig) -> None:
    if config.r < 1:
        raise invalid_field("r", f"a rank of {config.r} learns nothing; at least 1 is needed.")
    for field, (plain, instead) in _UNSERVED.items():
        if getattr(config, field) not in plain:
            raise invalid_field(field, f"“{field}” is not served: {instead}.")
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower().startswith(_INIT_CHANGES_BASE):
        raise invalid_field(
            "init_lora_weights",
            f"“{shown(init)}” changes the base's weights when it begins; save it as a plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion).",
        )


def _pairs(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """The tensors A and B of each module, by the module's name in the model that was trained."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _PAIR.fullmatch(name.removeprefix(_PREFIX)) if name.startswith(_PREFIX) else None
        if match is None:
            for part, instead in _OTHER_TENSORS:
                if part in name:
                    raise invalid_tensor(name, f"{instead}.")
            raise invalid_tensor(name, f"it is not expected; a LoRA holds {_PREFIX}….lora_A.weight and lora_B.weight.")
        pair = pairs.setdefault(match["module"], {})
        if match["side"] in pair:
            raise invalid_tensor(name, f"it and “{shown(pair[match['side']].name)}” are the same weight; send one.")
        pair[match["side"]] = tensor
    if not pairs:
        raise invalid_tensor(f"{_PREFIX}….lora_A.weight", "the file holds no LoRA; save the trained adapter again.")
    return pairs


def _read_pair(pair: dict[str, Tensor], module: str, rank: int, base: Base) -> tuple[Any, Any]:
    """`(a [rank, inputs], b [outputs, rank])`."""
    shape = base.shape(module)
    expected = {"A": (rank, shape.inputs), "B": (shape.outputs, rank)}
    for side, wanted in expected.items():
        if side not in pair:
            raise invalid_tensor(f"{_PREFIX}{module}.lora_{side}.weight", "it is missing; A and B belong together.")
        if pair[side].shape != wanted:
            raise invalid_tensor(
                pair[side].name,
                f"its shape is {list(pair[side].shape)}, and rank {rank} on this server's model needs {list(wanted)}.",
            )
    return pair["A"].float32(), pair["B"].float32()


def _by_pattern(
    found: Mapping[str, float] | None, module: str, default: float, field: str, patterns: Patterns
) -> float:
    """The first entry whose key is the end of the module's name, as PEFT looks it up."""
    for key, value in (found or {}).items():
        if patterns.ends(key, module, field):
            return value
    return default
