"""Weights in fp8 (e4m3) with a scale for each output channel, dequantised in the product."""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from softmux.engine.scaled import ScaledWeight

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
_PIECE = 1 << 26
"""Numbers quantised at once: a float32 copy of so many is all the room that quantising takes."""


@dataclass(frozen=True, slots=True)
class Fp8Weight(ScaledWeight):
    """`data` in e4m3, contiguous."""

    @classmethod
    def quantise(cls, weight: torch.Tensor) -> Fp8Weight:
        """Each output channel's largest magnitude becomes 448, the largest number of the format; all are rounded to
        nearest. `weight [out, in]` in any float dtype, on the device where the result is to lie."""
        outputs, width = weight.shape
        made = cls(
            torch.empty((outputs, width), dtype=E4M3, device=weight.device),
            torch.empty(outputs, dtype=torch.float32, device=weight.device),
        )
        rows = max(1, _PIECE // width)
        for at in range(0, outputs, rows):
            piece = weight[at : at + rows].float()
            scale = piece.abs().amax(1).clamp(min=1e-30) / E4M3_MAX
            made.scale[at : at + rows] = scale
            made.data[at : at + rows] = (piece / scale[:, None]).clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)
        return made


Weight = torch.Tensor | Fp8Weight
"""What a product takes: a plain matrix `[out, in]`, or one in fp8."""


def weight_of(layer: nn.Module) -> Weight:
    """A linear layer's weight as products take it."""
    if isinstance(layer, Fp8Linear):
        return layer.quantised
    linear: Any = layer
    weight: torch.Tensor = linear.weight.data
    return weight


def merge(layers: list[nn.Module]) -> Weight:
    """One weight of several layers', outputs under outputs; theirs become views of it: nothing is held twice."""
    weights = [weight_of(layer) for layer in layers]
    data = torch.cat([w.data.view(torch.uint8) if isinstance(w, Fp8Weight) else w for w in weights])
    scale = torch.cat([weight.scale for weight in weights if isinstance(weight, Fp8Weight)] or [data.new_empty(0)])
    at = 0
    for layer, weight in zip(layers, weights, strict=True):
        end = at + weight.shape[0]
        if isinstance(layer, Fp8Linear):
            layer.hold(Fp8Weight(data[at:end].view(E4M3), scale[at:end]))
        else:
            linear: Any = layer
            linear.weight.data = data[at:end]
        at = end
    return Fp8Weight(data.view(E4M3), scale) if data.dtype == torch.uint8 else data


class Fp8Linear(nn.Module):
    """`y = x·Wᵀ + b` with W in fp8, in place of a module's `nn.Linear`, or of GPT-2's `Conv1D` (`turned`: its weight
    comes as `[in, out]`). `hold` fills it; until then `weight` is the empty parameter of the layer it replaces.

    `plainly`, and where there are no kernels (a CPU, no Triton, a card before Ada), the product is torch's, in float32,
    on the dequantised weight: what the kernels are held to.
    """

    weight_scale: torch.Tensor
    plainly = False

    def __init__(self, layer: nn.Module) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        given: Any = layer
        self.turned = isinstance(layer, Conv1D)
        self.out_features, self.in_features = reversed(given.weight.shape) if self.turned else given.weight.shape
        self.bias: nn.Parameter | None = given.bias
        self.weight: nn.Parameter = given.weight
        self.register_buffer("weight_scale", torch.empty(self.out_features, dtype=torch.float32, device="meta"))

    def quantise(self, weight: torch.Tensor) -> Fp8Weight:
        """A weight as the replaced layer has it → as this one holds it. Raises ValueError for another shape."""
        turned = weight.t() if self.turned else weight
        if turned.shape != (self.out_features, self.in_features):
            raise ValueError(f"the weight is {tuple(turned.shape)}, not {(self.out_features, self.in_features)}")
        return Fp8Weight.quantise(turned)

    def hold(self, weight: Fp8Weight) -> None:
        """Takes a weight of its shape: its own, or a view of one merged with its neighbours'."""
        self.weight = nn.Parameter(weight.data, requires_grad=False)
        self.weight_scale = weight.scale

    @property
    def quantised(self) -> Fp8Weight:
        return Fp8Weight(self.weight.data, self.weight_scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.plainly and x.is_cuda and has_kernels(x.device):
            from softmux.engine.kernels.fp8 import product

            flat = product(x.reshape(-1, self.in_features), self.quantised, self.bias)
            return flat.view(*x.shape[:-1], self.out_features)
        bias = None if self.bias is None else self.bias.float()
        return F.linear(x.float(), self.quantised.dequantised(torch.float32), bias).to(x.dtype)


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Whether Triton's kernels know fp8 on that CUDA device (Ada and later)."""
    triton = importlib.util.find_spec("triton") is not None
    return triton and torch.cuda.get_device_capability(device) >= (8, 9)


def swap_linears(module: nn.Module) -> int:
    """Puts an unfilled `Fp8Linear` in the place of every linear layer but the head; how many.

    Embeddings, norms and the head stay as they are: the head is read once a step however many layers there are, and
    its rounding would go straight into the logits.
    """
    from transformers.pytorch_utils import Conv1D

    model: Any = module
    head = model.get_output_embeddings()
    swapped = 0
    for name, layer in list(module.named_modules()):
        if layer is not head and (type(layer) is nn.Linear or isinstance(layer, Conv1D)):
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, Fp8Linear(layer))
            swapped += 1
    return swapped
