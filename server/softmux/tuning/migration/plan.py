"""What is to be migrated, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from softmux.formats.parts import Part, Parts
from softmux.tuning.recipes.recipe import Train

SHARES: Mapping[str, float] = {"prompt": 0.06, "prefix": 0.05, "lora": 0.03}
"""The learning rate of a kind of part, as a share of the size (the root of the mean square) of what it begins as, a
LoRA's of its A: AdamW moves each number by about the rate, whatever its gradient. A pair's is the lower one."""

BALANCED = 16
"""A task with so few different answers learns each equally often."""

MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class OldTask:
    """A task's version over the old base: its files by name; `version` is its number, None for a folder's."""

    name: str
    files: Mapping[str, bytes]
    version: int | None = None


@dataclass(frozen=True, slots=True)
class How:
    """`inputs`: a folder of kept inputs, a file a task; `recipes`: one of recipes, whose held-out rows are measured on.
    At most `rows` inputs a task, so many are made up where none are kept; at most `held_out` rows with answers.
    `max_tokens` of an answer: by default the recipe's, else `MAX_TOKENS`. `learning_rate`: by default by `SHARES`."""

    inputs: Path | None = None
    recipes: Path | None = None
    rows: int = 1000
    held_out: int = 500
    max_tokens: int | None = None
    steps: int = 300
    learning_rate: float | None = None
    seed: int = 0

    def train(self, parts: Parts, answers: int) -> Train:
        """How parts are trained from where they begin, where there are so many different answers to learn."""
        every = max(1, self.steps // 10)
        return Train(
            steps=self.steps,
            learning_rate=self.learning_rate or min(SHARES[part.kind] * _size(part) for part in parts),
            warmup_steps=min(100, every),
            validate_every=every,
            seed=self.seed,
            balance=1 < answers <= BALANCED,
        )


def _size(part: Part) -> float:
    arrays = [array for name, array in part.arrays() if not name.endswith("lora_B")]
    squares = sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays)
    return math.sqrt(squares / sum(array.size for array in arrays)) or 1.0
