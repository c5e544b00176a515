"""Trained rows of the embedding table: `TRAINABLE_TOKENS`, or `trainable_token_indices` beside a LoRA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import StrictBool

from softmux.formats.config import AdapterConfig, Name, Names, TokenIds, invalid_field
from softmux.formats.methods.encoded import Tensors
from softmux.formats.parts import Parts, TokenRowsPart
from softmux.formats.tensors import Tensor, invalid_tensor
from softmux.types import ModelSpec

_ROWS = re.compile(r"base_model\.model\.(?P<module>.+?)(\.token_adapter)?\.trainable_tokens_delta(\.default)?")


class TrainableTokensConfig(AdapterConfig):
    """`target_modules` null means the base's embedding; PEFT writes its name."""

    token_indices: TokenIds
    target_modules: Names | Name | None = None
    init_weights: StrictBool = True


def read_trainable_tokens(config: TrainableTokensConfig, tensors: Tensors, spec: ModelSpec) -> Parts:
    rows, rest = split_token_rows(tensors)
    for name in rest:
        raise invalid_tensor(name, "it is not expected; only ….trainable_tokens_delta belong here.")
    if not config.token_indices:
        raise invalid_field("token_indices", "no token is named, so nothing was trained; name at least one.")
    return token_rows(config.token_indices, rows, "token_indices", spec)


def split_token_rows(tensors: Tensors) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(rows of tokens by the module they belong to, every other tensor by its name)."""
    rows: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = _ROWS.fullmatch(name)
        if match is None:
            rest[name] = tensor
        elif match["module"] in rows:
            raise invalid_tensor(name, "it is there under two names; send it once.")
        else:
            rows[match["module"]] = tensor
    return rows, rest


def token_rows(
    indices: list[int] | Mapping[str, list[int]] | None, rows: Mapping[str, Tensor], field: str, spec: ModelSpec
) -> tuple[TokenRowsPart, ...]:
    """One part for each table that has rows of its own; tied tables have one for both."""
    if not indices:
        for tensor in rows.values():
            raise invalid_tensor(tensor.name, f"{field} in the config names no tokens for it.")
        return ()
    parts: dict[str, TokenRowsPart] = {}
    for module, tensor in rows.items():
        side = _side(module, tensor, spec)
        ids = _ids(indices, module, field, spec)
        if tensor.shape != (len(ids), spec.hidden_size):
            raise invalid_tensor(
                tensor.name,
                f"its shape is {list(tensor.shape)}, and {len(ids)} tokens of this base need "
                f"{[len(ids), spec.hidden_size]}.",
            )
        parts[side] = TokenRowsPart(tuple(ids), tensor.float32(), side)
    if "input" not in parts and not (isinstance(indices, Mapping) and "output" in parts):
        raise invalid_tensor("….trainable_tokens_delta", "it is missing, though the config names trained tokens.")
    return _tied(parts, spec) if spec.tied_embeddings else tuple(parts.values())


def _tied(parts: dict[str, TokenRowsPart], spec: ModelSpec) -> tuple[TokenRowsPart, ...]:
    """PEFT ties the rows where the tables are tied, and may save them twice."""
    both = parts.get("input")
    if both is None:
        return (parts["output"],)
    other = parts.get("output", both)
    if other.ids != both.ids or not np.array_equal(other.vectors, both.vectors):
        raise invalid_tensor(
            "….trainable_tokens_delta",
            f"{spec.model_id} uses one table at its input and output, and the rows for the two differ; tie them.",
        )
    return (TokenRowsPart(both.ids, both.vectors, "both"),)


def _side(module: str, tensor: Tensor, spec: ModelSpec) -> Literal["input", "output"]:
    for side, name in (("input", spec.input_embedding), ("output", spec.output_embedding)):
        if name and (module == name or module.endswith(f".{name}") or name.endswith(f".{module}")):
            return "input" if side == "input" else "output"
    raise invalid_tensor(
        tensor.name,
        f"{spec.model_id} has its tokens' rows in {spec.input_embedding or 'no table'}; train them there.",
    )


def _ids(indices: list[int] | Mapping[str, list[int]], module: str, field: str, spec: ModelSpec) -> list[int]:
    if isinstance(indices, list):
        ids: list[int] | None = indices
    else:
        named = [value for name, value in indices.items() if module == name or module.endswith(f".{name}")]
        ids = named[0] if len(named) == 1 else None
    if ids is None:
        raise invalid_field(field, f"it does not say which tokens of {module} were trained.")
    if len(set(ids)) != len(ids):
        raise invalid_field(field, "it names a token twice; name each once.")
    for token in ids:
        if token >= spec.vocab_size:
            raise invalid_field(
                field,
                f"token {token} is beyond this base's vocabulary of {spec.vocab_size}; a base with added tokens is "
                "another base.",
            )
    return ids
