"""What an adapter is made of once its files are read: parts, in the order in which they act on a request.

The engine knows parts, not methods: a new method becomes a new part here and a row in `softmux.formats.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PromptPart:
    """Learned input embeddings. `vectors` is float32 `[k, hidden]`; row i is what virtual token i stands for.

    A vector takes the place of what the model's embedding module gives for a token id.
    """

    vectors: Float32Array

    @property
    def virtual_tokens(self) -> int:
        return int(self.vectors.shape[0])

    @property
    def parameters(self) -> int:
        return int(self.vectors.size)


@dataclass(frozen=True, slots=True, eq=False)
class PrefixPart:
    """Learned keys and values of k leading positions, float32 `[layers, k, kv_heads, head_dim]` each.

    Keys are stored as attention uses them: no rotary embedding is to be applied (PEFT applies none).
    """

    keys: Float32Array
    values: Float32Array

    @property
    def virtual_tokens(self) -> int:
        return int(self.keys.shape[1])

    @property
    def parameters(self) -> int:
        return int(self.keys.size + self.values.size)


Parts = tuple[PromptPart | PrefixPart, ...]
