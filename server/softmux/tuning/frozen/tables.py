"""What a step's tasks have learned, as the frozen base is given it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from softmux.tuning.frozen.low_rank import LowRank
from softmux.tuning.frozen.stacked_heads import StackedHeads


@dataclass(frozen=True, slots=True)
class Tables:
    """What a step's tasks have learned. `vectors [V, hidden]`; `prefixes [P, 2 · layers · kv_heads · head_dim]`,
    layer by layer keys, then values; `low_rank` the LoRAs and `heads` the heads, by
    cohort. All in float32; None, or empty, where no task has any."""

    vectors: torch.Tensor | None = None
    prefixes: torch.Tensor | None = None
    low_rank: dict[int, LowRank] | None = None
    heads: dict[int, StackedHeads] | None = None
