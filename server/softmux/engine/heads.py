"""Classification heads: every row's own, of any number of labels, in one batched product a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
import torch.nn.functional as F

from softmux.engine.device import send, to_device
from softmux.engine.poolers import Pooler
from softmux.engine.transfer import Copies
from softmux.engine.vocabulary import VirtualVocabulary
from softmux.formats.parts import Activation, HeadPart
from softmux.scheduler.radix import RootKey

_MARGIN = 8
"""Numbers behind a row's weights, the first of them its bias: rows stay aligned."""
_BLOCK = 32
"""Hidden states of one head that share a copy of its weights in the product."""
_BYTES = 32 << 20
"""What the table takes at first. It grows if one step needs more."""
_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "relu": torch.relu,
}


class HeadShape(msgspec.Struct, frozen=True, array_like=True):
    """What a head's rows mean: the first `labels` are its outputs', those behind them its dense layer's, if it has
    one, which `activation` follows; with `eps` two more are weight and bias of the layer norm that follows in turn.
    `base_pooler`: the base's own pooler comes before all."""

    labels: int
    activation: Activation | None
    base_pooler: bool
    eps: float | None = None


def head_rows(head: HeadPart) -> tuple[HeadShape, torch.Tensor]:
    """A head as rows of the table: `[labels (+ width (+ 2)), width + 8]` float32, weights and bias side by side."""
    layers = [(head.weight, head.bias)]
    activation, eps = None, None
    if head.dense is not None:
        activation = head.dense.activation
        layers.append((head.dense.weight, head.dense.bias))
        if (norm := head.dense.norm) is not None:
            eps = norm.eps
            shift = np.zeros_like(norm.weight) if norm.bias is None else norm.bias
            layers.append((np.stack([norm.weight, shift]), None))
    rows = torch.zeros((sum(len(weight) for weight, _ in layers), head.weight.shape[1] + _MARGIN))
    at = 0
    for weight, bias in layers:
        rows[at : at + len(weight), :-_MARGIN] = torch.from_numpy(weight)
        if bias is not None:
            rows[at : at + len(weight), -_MARGIN] = torch.from_numpy(bias)
        at += len(weight)
    return HeadShape(len(head.weight), activation, head.base_pooler, eps), rows


class Heads:
    """The heads in use, as rows of one float32 table on the device (`VirtualVocabulary`, least recently used give way).

    `shape_of` and `rows_of` say what a running sequence's adapter has; `pooler` is the base's, if it has one.
    """

    def __init__(
        self,
        width: int,
        device: torch.device,
        copies: Copies,
        *,
        shape_of: Callable[[RootKey], HeadShape],
        rows_of: Callable[[RootKey], torch.Tensor],
        pooler: Pooler | None = None,
    ) -> None:
        self._width = width
        self._device = device
        self._copies = copies
        self._shape_of = shape_of
        self._rows_of = rows_of
        self._pooler = pooler
        self._table: VirtualVocabulary | None = None

    def forget(self, adapter: RootKey) -> None:
        if self._table is not None:
            self._table.forget(adapter)

    def scores(
        self, states: torch.Tensor, adapters: Sequence[RootKey], counts: Sequence[int]
    ) -> tuple[torch.Tensor, dict[RootKey, int]]:
        """`states [tokens, width]`: the first `counts[0]` are read by the head of `adapters[0]`, and so on. → `[tokens,
        labels]` float32, and how many labels each head has: those beyond its own mean nothing."""
        if self._table is None:  # a server without heads never pays for it
            rows = max(256, _BYTES // (4 * (self._width + _MARGIN)))
            self._table = VirtualVocabulary(rows, self._width + _MARGIN, torch.float32, self._device, self._copies)
        shapes = {adapter: self._shape_of(adapter) for adapter in dict.fromkeys(adapters)}
        found = self._table.rows_of(shapes, self._rows_of)
        number = {adapter: i for i, adapter in enumerate(shapes)}
        owners = np.repeat(np.array([number[adapter] for adapter in adapters]), counts)
        heads = [(shape, found[adapter]) for adapter, shape in shapes.items()]
        pooled = np.flatnonzero(np.array([shape.base_pooler for shape, _ in heads])[owners])
        if len(pooled):
            assert self._pooler is not None, "admission asks for it"
            at = to_device(pooled, self._device)
            states = states.index_copy(0, at, self._pooler(states[at]).to(states.dtype))
        x = states.float()
        for activation in sorted({shape.activation for shape, _ in heads if shape.activation}):
            these = np.flatnonzero(np.array([shape.activation == activation for shape, _ in heads])[owners])
            at = to_device(these, self._device)
            dense = [numbers[shape.labels :][: self._width] for shape, numbers in heads]
            inner = self._product(x[at], owners[these], dense, self._width)
            x = x.index_copy(0, at, _ACTIVATIONS[activation](inner))
        for eps in sorted({shape.eps for shape, _ in heads if shape.eps is not None}):
            these = np.flatnonzero(np.array([shape.eps == eps for shape, _ in heads])[owners])
            at = to_device(these, self._device)
            norms = [numbers[-2:] if shape.eps == eps else [0, 0] for shape, numbers in heads]
            x = x.index_copy(0, at, self._normed(x[at], owners[these], norms, eps))
        most = max(shape.labels for shape, _ in heads)
        scores = self._product(x, owners, [numbers[: shape.labels] for shape, numbers in heads], most)
        return scores, {adapter: shape.labels for adapter, shape in shapes.items()}

    def _normed(self, x: torch.Tensor, owners: np.ndarray[Any, Any], rows: list[list[int]], eps: float) -> torch.Tensor:
        """`[tokens, width]`, each by its owner's two rows."""
        assert self._table is not None
        pairs, each = send(self._device, np.array(rows, np.int64).reshape(-1), owners)
        learned = self._table.take(pairs).view(-1, 2, self._width + _MARGIN)
        weight, bias = learned[each, :, : self._width].unbind(1)
        return F.layer_norm(x, (self._width,), eps=eps) * weight + bias

    def _product(self, x: torch.Tensor, owners: np.ndarray[Any, Any], rows: list[list[int]], most: int) -> torch.Tensor:
        """`x [tokens, width]` → `[tokens, most]`, each by the rows of its owner. The tokens of one owner are cut into
        blocks, and each block is multiplied by a copy of its owner's rows: one product of equal blocks."""
        assert self._table is not None
        order = np.argsort(owners, kind="stable")
        kinds, firsts, sizes = np.unique(owners[order], return_index=True, return_counts=True)
        block = min(_BLOCK, 1 << (int(sizes.max()) - 1).bit_length())
        blocks = -(-sizes // block)
        begins = np.cumsum(blocks) - blocks
        within = np.arange(len(order)) - np.repeat(firsts, sizes)
        places = np.repeat(begins * block, sizes) + within
        taken = np.zeros(int(blocks.sum()) * block, np.int64)
        taken[places] = order
        back = np.empty(len(order), np.int64)
        back[order] = places
        padded = np.zeros((len(kinds), most), np.int64)
        for i, kind in enumerate(kinds.tolist()):
            padded[i, : len(rows[kind])] = rows[kind]
        copied, packs, unpacks = send(self._device, np.repeat(padded, blocks, axis=0).reshape(-1), taken, back)
        weights = self._table.take(copied).view(-1, most, self._width + _MARGIN)
        packed = x[packs].view(-1, block, self._width)
        bias = weights[:, None, :, -_MARGIN]
        out = torch.baddbmm(bias, packed, weights[:, :, :-_MARGIN].transpose(1, 2))
        return out.flatten(0, 1)[unpacks]
