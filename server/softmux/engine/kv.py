"""The paged KV pool's tensors: one slot a token, every layer's keys and values in one block of memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softmux.engine.fp8 import E4M3, E4M3_MAX
from softmux.engine.transfer import Landing, Piece, best_copies
from softmux.types import LayerKV

PrefixKV = torch.Tensor
"""A prefix's compiled keys and values: `[2, layers, tokens, kv_heads, head_dim]`, keys first."""

_TOKENS = 2
"""Where the tokens are among a prefix's dimensions, and the slots among the pool's."""


def as_kept(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values as a pool of that dtype keeps them. In fp8 they are rounded without a scale: the format reaches
    from 0.002 to 448, with three bits behind the first, and what is larger becomes 448."""
    return (x.clamp(-E4M3_MAX, E4M3_MAX) if dtype == E4M3 else x).to(dtype)


def _raw(x: torch.Tensor) -> torch.Tensor:
    """For torch's indexing, which knows no fp8: its bytes."""
    return x.view(torch.uint8) if x.dtype == E4M3 else x


def _raw_pieces(pieces: Sequence[Piece]) -> list[Piece]:
    return [Piece(_raw(piece.values), piece.start, piece.slots) for piece in pieces]


class KVPool:
    """`keys[layer]` and `values[layer]`: `[slots + 1, kv_heads, head_dim]` in the KV dtype, which may be fp8 (e4m3).

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
        self.copies = best_copies(device)
        self._after: torch.cuda.Event | None = None
        self._rehearse()
        self.fence()

    @staticmethod
    def bytes_per_token(layers: Sequence[LayerKV], dtype: torch.dtype) -> int:
        return sum(2 * layer.kv_heads * layer.head_dim for layer in layers) * dtype.itemsize

    def prefix_shape(self, tokens: int) -> tuple[int, ...]:
        """Of a prefix of so many tokens."""
        return (2, len(self.keys), tokens, *self.keys[0].shape[1:])

    def put(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes a layer's new `keys`, `values` `[tokens, kv_heads, head_dim]` at `slots` (int64)."""
        _raw(self.keys[layer]).index_copy_(0, slots, _raw(as_kept(keys, self.dtype)))
        _raw(self.values[layer]).index_copy_(0, slots, _raw(as_kept(values, self.dtype)))

    def take(self, layer: int, slots: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's keys and values at `slots`, `[len(slots), kv_heads, head_dim]` each, in `dtype`."""
        keys = _raw(self.keys[layer]).index_select(0, slots).view(self.dtype)
        values = _raw(self.values[layer]).index_select(0, slots).view(self.dtype)
        return keys.to(dtype), values.to(dtype)

    def load(self, pieces: Sequence[Piece]) -> None:
        """Copies parts of prefixes from host memory into slots; what runs on the current stream from here on finds
        them there.

        A GPU may write them beside the step that is running, for it uses none of those slots: the scheduler gives
        slots out again only when every step that was told of them has landed, which is when its tokens, or its end,
        have been waited for on the host. Where that does not hold, after a step that failed midway, `fence` is called.
        """
        after, self._after = self._after, None
        self.copies.scatter(_raw(self._storage), _TOKENS, _raw_pieces(pieces), after)

    def save(self, pieces: Sequence[Piece]) -> Landing:
        """Copies slots into host memory, as the steps launched so far leave them."""
        return self.copies.gather(_raw(self._storage), _TOKENS, _raw_pieces(pieces))

    def _rehearse(self) -> None:
        """Compiles what a GPU's copies need, on the spare slot, so that no step waits for it."""
        if self.device.type == "cuda":
            there = torch.empty(self.prefix_shape(1), dtype=self.dtype, pin_memory=True)
            self.save([Piece(there, 0, [self.spare])])
            torch.cuda.synchronize(self.device)
            self.load([Piece(there, 0, [self.spare])])

    def fence(self) -> None:
        """What has been launched by now may use any slot: the next `load` waits for it on the device."""
        if self.device.type == "cuda":
            self._after = torch.cuda.Event()
            self._after.record()
