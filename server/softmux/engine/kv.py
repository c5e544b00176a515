"""The paged KV pool's tensors: one slot a token, each layer's keys and values apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softmux.types import LayerKV

PrefixKV = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""A prefix's keys and values by layer, `[tokens, kv_heads, head_dim]` each."""


class KVPool:
    """`keys[layer]` and `values[layer]`: `[slots, kv_heads, head_dim]` in the KV dtype.

    A token's heads lie together, so that a kernel that walks a row's slots reads whole lines of memory.
    """

    def __init__(self, layers: Sequence[LayerKV], slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = slots
        self.dtype = dtype
        self.device = device
        shapes = [(slots, layer.kv_heads, layer.head_dim) for layer in layers]
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]

    @staticmethod
    def bytes_per_token(layers: Sequence[LayerKV], dtype: torch.dtype) -> int:
        return sum(2 * layer.kv_heads * layer.head_dim for layer in layers) * dtype.itemsize

    def write(self, prefix: PrefixKV, start: int, slots: Sequence[int]) -> None:
        """Copies tokens `start … start + len(slots)` of `prefix` (host or device) into `slots`."""
        index = torch.tensor(slots, device=self.device)
        end = start + len(slots)
        for layer, (keys, values) in enumerate(prefix):
            self.keys[layer].index_copy_(0, index, keys[start:end].to(self.device, non_blocking=True))
            self.values[layer].index_copy_(0, index, values[start:end].to(self.device, non_blocking=True))

    def read(self, slots: Sequence[int]) -> PrefixKV:
        """A copy, in host memory, of what `slots` hold."""
        index = torch.tensor(slots, device=self.device)
        return tuple(
            (keys.index_select(0, index).cpu(), values.index_select(0, index).cpu())
            for keys, values in zip(self.keys, self.values, strict=True)
        )
