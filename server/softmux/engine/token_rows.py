"""Trained rows of token tables: for the rows of a step whose adapters have such, a real id means a learned vector."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from softmux.engine.delta_products import Spread
from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.device import send, to_device


class TokenRows:
    """`scale`: what the embedding module multiplies its rows by (Gemma's does). `vocabulary` bounds the ids."""

    def __init__(self, slots: DeltaSlots, vocabulary: int, scale: float) -> None:
        self._slots = slots
        self._vocabulary = vocabulary
        self._scale = scale
        self._kept: dict[str, tuple[list[tuple[int, int]], torch.Tensor, torch.Tensor]] = {}

    def there(self, side: Literal["input", "output"], spread: Spread) -> bool:
        """Whether any of the step's adapters has rows of that side."""
        return bool(self._having(side, spread))

    def embed(self, embeddings: torch.Tensor, ids: torch.Tensor, spread: Spread) -> torch.Tensor:
        """`embeddings [tokens, hidden]` of `ids`, the learned rows in their places."""
        having = self._having("input", spread)
        if not having:
            return embeddings
        by_token = spread.by_token
        tokens = np.flatnonzero(np.isin(by_token, having))
        keys, vectors = self._table("input", having)
        at, whose = send(embeddings.device, tokens, by_token[tokens])
        wanted = whose * self._vocabulary + ids[at]
        place = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
        scaled = vectors[place] * torch.tensor(self._scale, dtype=embeddings.dtype, device=embeddings.device)
        return embeddings.index_copy(0, at, torch.where((keys[place] == wanted)[:, None], scaled, embeddings[at]))

    def score(self, hidden: torch.Tensor, logits: torch.Tensor, spread: Spread) -> None:
        """Puts the learned rows' products with `hidden [rows, hidden]` into `logits [rows, vocab]`."""
        having = self._having("output", spread)
        if not having:
            return
        keys, vectors = self._table("output", having)
        owners, counts = np.unique(self._owners("output", having), return_counts=True)
        begins = dict(zip(owners.tolist(), (np.cumsum(counts) - counts).tolist(), strict=True))
        sizes = dict(zip(owners.tolist(), counts.tolist(), strict=True))
        rows = [row for row, slot in enumerate(spread.by_token.tolist()) if slot in sizes]
        slots = spread.by_token[rows].tolist()
        inner = np.repeat(np.arange(len(rows)), [sizes[slot] for slot in slots])
        columns = np.concatenate([np.arange(begins[slot], begins[slot] + sizes[slot]) for slot in slots])
        at, within, column = send(logits.device, np.array(rows), inner, columns)
        products = hidden[at] @ vectors.t()
        logits[at[within], keys[column] % self._vocabulary] = products[within, column]

    # --- within ------------------------------------------------------------------------------------------------------

    def _having(self, side: Literal["input", "output"], spread: Spread) -> list[int]:
        deltas = self._slots.deltas
        return [s for s in spread.active if (delta := deltas[s]) is not None and any(delta.tables_at(side))]

    def _owners(self, side: Literal["input", "output"], having: list[int]) -> np.ndarray:
        """Whose each row is, in the order of `having`."""
        deltas = [self._slots.deltas[slot] for slot in having]
        counts = [sum(len(table.ids) for table in delta.tables_at(side)) for delta in deltas if delta is not None]
        return np.repeat(np.array(having), counts)

    def _table(self, side: Literal["input", "output"], having: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """(slot · vocabulary + id, ascending; the rows in that order) of these slots; kept while they are the same."""
        named = [(slot, self._slots.seatings[slot]) for slot in having]
        known = self._kept.get(side)
        if known is None or known[0] != named:
            keys: list[int] = []
            parts = []
            for slot in having:
                delta = self._slots.deltas[slot]
                assert delta is not None
                for table in delta.tables_at(side):
                    keys += [slot * self._vocabulary + token for token in table.ids]
                    parts.append(delta.rows(table))
            order = np.argsort(np.array(keys))
            device = self._slots.device
            rows = torch.cat(parts)[to_device(order, device)]
            known = self._kept[side] = named, to_device(np.array(keys)[order], device), rows
        return known[1], known[2]
