"""What adapters change, within the fused layers: their products are merged ones, and the modules' names are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from softmux.engine.delta_products import TritonDeltas
from softmux.engine.delta_slots import DeltaSlots

if TYPE_CHECKING:  # Triton is there on GPU machines only
    from softmux.engine.kernels.lora import Blocks

Kind = Literal["qkv", "out", "gate_up", "down"]
Kinds = frozenset[Kind]

_MODULES: Mapping[Kind, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "out": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}


class FusedColumns:
    """Where each layer's products lie in the table of `DeltaSlots`, and which of them an adapter updates."""

    def __init__(self, products: TritonDeltas, slots: DeltaSlots, layers: int) -> None:
        """Raises KeyError or ValueError where the module has not the layers that are known."""
        self.products = products
        self._slots = slots
        self._columns: list[dict[Kind, int]] = []
        self._kinds: dict[str, Kind] = {}
        for layer in range(layers):
            begins: dict[Kind, int] = {}
            for kind, modules in _MODULES.items():
                names = [f"model.layers.{layer}.{module}" for module in modules]
                columns = [slots.columns[name] for name in names]
                if columns != list(range(columns[0], columns[0] + len(columns))):
                    raise ValueError(f"{', '.join(names)} are no neighbours")
                begins[kind] = columns[0]
                self._kinds |= dict.fromkeys(names, kind)
            self._columns.append(begins)

    def kinds(self, active: list[int]) -> Kinds | None:
        """The kinds of product that these slots' adapters update; None where one changes anything else, too."""
        found: set[Kind] = set()
        for slot in active:
            delta = self._slots.deltas[slot]
            if delta is None or delta.tables:
                return None
            for update in delta.updates:
                kind = self._kinds.get(update.name)
                if kind is None:
                    return None
                found.add(kind)
        return frozenset(found)

    def add(self, layer: int, kind: Kind, x: torch.Tensor, y: torch.Tensor, blocks: Blocks) -> None:
        self.products.add_merged(self._columns[layer][kind], len(_MODULES[kind]), x, y, blocks)


@dataclass(frozen=True, slots=True)
class FusedStep:
    """A forward's adapters: whose each token is, and the kinds of product that gain something."""

    columns: FusedColumns
    kinds: Kinds
    blocks: Blocks

    def add(self, layer: int, kind: Kind, x: torch.Tensor, y: torch.Tensor) -> None:
        """To `y [tokens, outputs]` what the adapters make of `x [tokens, inputs]`, in place."""
        if kind in self.kinds:
            self.columns.add(layer, kind, x, y, self.blocks)
