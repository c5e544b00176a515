"""What a module is made of, as far as adapters act on it: its linear modules and its embeddings, by their paths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from softmux.types import LinearShape

_ROWS = 64
"""As many of a weight's rows are looked at to tell its scale."""


def linear_shapes(module: nn.Module) -> tuple[LinearShape, ...]:
    """Every linear module, whatever holds its weight (a quantised one says its widths too), in the module's order; but
    for an encoder's pooler, which heads run, and the layers' step does not."""
    shapes = []
    for name, child in module.named_modules():
        if name.endswith("pooler.dense"):
            continue
        if isinstance(child, Conv1D):
            shapes.append(LinearShape(name, int(child.nx), int(child.nf)))
        elif hasattr(child, "in_features") and hasattr(child, "out_features"):
            shapes.append(LinearShape(name, int(child.in_features), int(child.out_features)))
    return tuple(shapes)


def weighed(linears: Iterable[LinearShape], module: nn.Module) -> tuple[LinearShape, ...]:
    """The same with the `scale` of each weight. `module` may hold a part of each: its numbers are like the others."""
    children = dict(module.named_modules())
    return tuple(msgspec.structs.replace(linear, scale=_scale(children.get(linear.name))) for linear in linears)


@torch.inference_mode()
def _scale(layer: Any) -> float:
    """Of some rows, evenly spread: this is for a comparison by orders of magnitude."""
    quantised = getattr(layer, "quantised", None)
    weight = getattr(layer, "weight", None) if quantised is None else quantised.dequantised(torch.float32)
    if not isinstance(weight, torch.Tensor) or type(weight) not in (torch.Tensor, nn.Parameter):
        return 0.0
    if weight.is_meta or not weight.is_floating_point() or not weight.numel():
        return 0.0
    return float(weight[:: -(-len(weight) // _ROWS)].float().square().mean().sqrt())


def row_scale(embedding: Any) -> float | None:
    """What an embedding module multiplies the rows of its table by; None where it does something else with them."""
    weight: torch.Tensor = embedding.weight
    ids = torch.arange(min(64, len(weight)), device=weight.device)
    scale = float(getattr(embedding, "embed_scale", 1.0))
    rows = weight[ids] * torch.tensor(scale, dtype=weight.dtype, device=weight.device)
    return scale if torch.allclose(embedding(ids), rows, rtol=1e-2) else None


def embeddings(module: Any) -> tuple[str, str, bool]:
    """(path of the input embedding, path of the output projection, whether they share a weight); "" for none."""
    given = module.get_input_embeddings()
    output = module.get_output_embeddings()
    paths = {child: name for name, child in module.named_modules()}
    tied = output is not None and getattr(output, "weight", None) is getattr(given, "weight", given)
    return paths.get(given, ""), paths.get(output, "") if output is not None else "", tied
