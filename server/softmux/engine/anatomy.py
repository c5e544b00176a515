"""What a module is made of, as far as adapters act on it: its linear modules and its embeddings, by their paths."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from softmux.types import LinearShape


def linear_shapes(module: nn.Module) -> tuple[LinearShape, ...]:
    """Every linear module, whatever holds its weight (a quantised one says its widths too), in the module's order."""
    shapes = []
    for name, child in module.named_modules():
        if isinstance(child, Conv1D):
            shapes.append(LinearShape(name, int(child.nx), int(child.nf)))
        elif hasattr(child, "in_features") and hasattr(child, "out_features"):
            shapes.append(LinearShape(name, int(child.in_features), int(child.out_features)))
    return tuple(shapes)


def embeddings(module: Any) -> tuple[str, str, bool]:
    """(path of the input embedding, path of the output projection, whether they share a weight); "" for none."""
    given = module.get_input_embeddings()
    output = module.get_output_embeddings()
    paths = {child: name for name, child in module.named_modules()}
    tied = output is not None and getattr(output, "weight", None) is getattr(given, "weight", given)
    return paths.get(given, ""), paths.get(output, "") if output is not None else "", tied
