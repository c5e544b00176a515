"""The paged KV pool's tensors: one slot a token, every layer's keys and values in one block of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softmux.engine.device import to_device
from softmux.types import LayerKV

PrefixKV = torch.Tensor
"""A prefix's compiled keys and values: `[2, layers, tokens, kv_heads, head_dim]`, keys first."""


class KVPool:
    """`keys[layer]` and `values[layer]`: `[slots + 1, kv_heads, head_dim]` in the KV dtype.

    A token's heads lie together, so that a kernel that walks a row's slots reads whole lines of memory. The slot
    behind the last, `spare`, is nobody's: what padding rows write goes there.
    """

    def __init__(self, layers: Sequence[LayerKV], slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self.slots = slots
        self.spare = slots
        self.dtype = dtype
        self.device = device
        shape = (2, len(layers), slots + 1, layers[0].kv_heads, layers[0].head_dim)
        self._storage = torch.zeros(shape, dtype=dtype, device=device)
        self.keys = list(self._storage[0].unbind(0))
        self.values = list(self._storage[1].unbind(0))

    @staticmethod
    def bytes_per_token(layers: Sequence[LayerKV], dtype: torch.dtype) -> int:
        return sum(2 * layer.kv_heads * layer.head_dim for layer in layers) * dtype.itemsize

    def write(self, prefix: PrefixKV, start: int, slots: Sequence[int]) -> None:
        """Copies tokens `start … start + len(slots)` of `prefix` (host or device) into `slots`."""
        part = prefix[:, :, start : start + len(slots)].to(self.device, non_blocking=True)
        self._storage.index_copy_(2, to_device(slots, self.device), part)

    def read(self, slots: Sequence[int]) -> PrefixKV:
        """A copy, in host memory (pinned, for a GPU), of what `slots` hold.

        On a GPU the copy is only ordered behind the step: whoever reads it on the host waits for the device first.
        """
        found = self._storage.index_select(2, to_device(slots, self.device))
        if self.device.type == "cpu":
            return found
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        return host.copy_(found, non_blocking=True)
