"""Attention scores by distance alone: what T5 adds for where a key lies relative to a query, by head."""

from __future__ import annotations

import torch
import torch.nn.functional as F


class DistanceBias:
    """`table [2 · reach − 1, heads]`: what a head adds at each distance, key minus query, from `1 − reach` on."""

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table
        self._reach = (len(table) + 1) // 2

    def values(self, query_positions: torch.Tensor, keys: int) -> torch.Tensor:
        """`query_positions [rows, queries]`, keys at positions `0 … keys` → `[rows, heads, queries, keys]`."""
        at = torch.arange(keys, device=query_positions.device)
        distances = at - query_positions[:, :, None] + self._reach - 1
        return F.embedding(distances, self._table).permute(0, 3, 1, 2)
