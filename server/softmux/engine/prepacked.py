"""On a CPU: the model's linear layers with their weights laid out once for oneDNN, instead of at each product."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

log = logging.getLogger(__name__)

_ROWS = 64
"""The number of rows the layout is chosen for; any number works."""
_ROUNDING = 1e-5


class PrepackedLinear(nn.Module):
    """`y = x·Wᵀ + b` in float32, with W in oneDNN's own blocked layout. Holds no second copy of the weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.weight = None  # T5 looks at it, for its dtype
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


class Prepacked:
    """The swap of a module's linear layers for prepacked ones: `swap` does it, `undo` takes it back."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._originals: dict[str, nn.Linear] = {}

    @torch.inference_mode()
    def swap(self) -> int:
        """Swaps every float32 `nn.Linear` whose prepacked product equals its own on random input; how many.

        Raises whatever torch raises where this build has no oneDNN.
        """
        for name, linear in list(self._module.named_modules()):
            plain = type(linear) is nn.Linear and type(linear.weight) is nn.Parameter
            if not plain or linear.weight.dtype != torch.float32:
                continue
            packed = PrepackedLinear(linear)
            x = torch.randn((3, linear.in_features))
            expected = F.linear(x, linear.weight, linear.bias)
            if (packed(x) - expected).norm() <= _ROUNDING * expected.norm():
                self._originals[name] = linear
                self._put(name, packed)
        return len(self._originals)

    def undo(self) -> None:
        for name, linear in self._originals.items():
            self._put(name, linear)
        self._originals.clear()

    def keep(self) -> None:
        """The swap stands: the original weights may be freed (a tied one stays, as the embedding)."""
        self._originals.clear()

    def _put(self, name: str, layer: nn.Module) -> None:
        parent, _, leaf = name.rpartition(".")
        owner: Any = self._module.get_submodule(parent)
        setattr(owner, leaf, layer)
