"""Linear layers whose weights lie in 8 or 4 bits, as torchao and bitsandbytes make them, dequantised in the product.

Inputs stay in full. bitsandbytes' own 8-bit layer rounds them too, by columns that it picks over the whole batch, and
its 4-bit layer rounds them to bfloat16 on some CPUs; here a row gives the same whatever rows are beside it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from softmux.engine.fp8 import Fp8Linear
from softmux.engine.scaled import ScaledWeight


class QuantisedWeight(Protocol):
    """A matrix `[out, in]` in few bits. `nbytes` counts its scales too; `name` is the format's."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> torch.Size: ...
    @property
    def nbytes(self) -> int: ...
    def dequantised(self, dtype: torch.dtype) -> torch.Tensor: ...
    def product(self, x: torch.Tensor) -> torch.Tensor:
        """`[…, in]` → `[…, out]` in `x`'s dtype."""
        ...


@dataclass(frozen=True, slots=True)
class Int8Weight(ScaledWeight):
    """`data` in int8."""

    name: ClassVar[str] = "int8"

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Every int8 is a number of each float dtype, so nothing is rounded before the sum."""
        return (F.linear(x, self.data.to(x.dtype)) * self.scale).to(x.dtype)


@dataclass(frozen=True, slots=True)
class FourBitWeight:
    """`data`: two numbers a byte; `state`: bitsandbytes' `QuantState`, with the scale of each block of 64, which may be
    quantised themselves ("double quantisation")."""

    data: torch.Tensor
    state: Any
    shape: torch.Size

    @classmethod
    def of(cls, data: torch.Tensor, state: Any) -> FourBitWeight:
        """Blocks run on from row to row, but bitsandbytes' CPU kernel begins one with each: where a row is no multiple
        of a block, it is told of one long row."""
        shape = torch.Size(state.shape)
        if not data.is_cuda and shape[-1] % state.blocksize:
            state = copy.copy(state)
            state.shape = torch.Size([shape.numel()])
        return cls(data, state, shape)

    @property
    def name(self) -> str:
        return str(self.state.quant_type)

    @property
    def nbytes(self) -> int:
        held = [self.data, self.state.absmax]
        if self.state.nested:
            held.append(self.state.state2.absmax)
        return sum(tensor.nbytes for tensor in held)

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        """By way of the dtype in which it was quantised, as bitsandbytes does."""
        from bitsandbytes.functional import dequantize_4bit

        weight: torch.Tensor = dequantize_4bit(self.data, self.state)
        return weight.view(self.shape).to(dtype)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        if not x.is_cuda:
            return F.linear(x, self.dequantised(x.dtype))
        from bitsandbytes import matmul_4bit

        y: torch.Tensor = matmul_4bit(x, self.data, quant_state=self.state)
        return y


class QuantisedLinear(nn.Module):
    """`y = x·Wᵀ + b`. `plainly`, the product is in float32 on the dequantised weight: what the other is held to."""

    plainly = False

    def __init__(self, weight: QuantisedWeight, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.quantised = weight
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.plainly:
            bias = None if self.bias is None else self.bias.float()
            return F.linear(x.float(), self.quantised.dequantised(torch.float32), bias).to(x.dtype)
        y = self.quantised.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)


def take_over(module: nn.Module) -> int:
    """Puts a `QuantisedLinear` in the place of every layer that torchao or bitsandbytes quantised, on the same weights;
    how many. Formats it does not know stay in their own layers, which then are their own reference."""
    taken = 0
    for name, layer in list(module.named_modules()):
        weight = _weight_of(layer)
        if weight is not None:
            parent, _, leaf = name.rpartition(".")
            held: Any = layer
            setattr(module.get_submodule(parent), leaf, QuantisedLinear(weight, held.bias))
            taken += 1
    return taken


def _weight_of(layer: nn.Module) -> QuantisedWeight | None:
    if not isinstance(layer, nn.Linear):
        return None
    weight: Any = layer.weight
    kind = type(weight).__name__
    if kind == "Params4bit":
        return FourBitWeight.of(weight.data, weight.quant_state)
    if kind == "Int8Params":
        return Int8Weight(weight.data, weight.SCB.float() / 127)
    if kind == "Int8Tensor" and weight.act_pre_scale is None:
        by_output = tuple(weight.block_size) == (1, weight.shape[1])
        centred = weight.zero_point is None or not bool(weight.zero_point.any())
        if by_output and centred:
            return Int8Weight(weight.qdata, weight.scale.flatten().float())
    return None


def format_of(module: nn.Module) -> str | None:
    """The name of the format in which the module's linear layers lie, or names joined by `+`; None where in full."""
    found: dict[str, None] = {}
    for layer in module.modules():
        if isinstance(layer, Fp8Linear):
            found["fp8"] = None
        elif isinstance(layer, QuantisedLinear):
            found[layer.quantised.name] = None
        elif isinstance(layer, nn.Linear) and hasattr(layer.weight, "__tensor_flatten__"):
            found[type(layer.weight).__name__] = None
    return "+".join(found) or None


def size(module: nn.Module) -> tuple[int, int]:
    """(numbers, bytes) of all weights; what is tied counts once."""
    numbers = sum(parameter.numel() for parameter in module.parameters())
    held = sum(_bytes(parameter) for parameter in module.parameters())
    for layer in module.modules():
        if isinstance(layer, QuantisedLinear):
            numbers += layer.quantised.shape.numel()
            held += layer.quantised.nbytes
        elif isinstance(layer, Fp8Linear):
            held += layer.weight_scale.nbytes
    return numbers, held


def _bytes(tensor: Any) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
