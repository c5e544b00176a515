"""A method under a head that classifies."""

from __future__ import annotations

from dataclasses import dataclass

from softmux.tuning.recipes.recipe import Lora, PrefixTuning, PromptTuning, PTuning, PTuningV2
from softmux.types import HeadKind


@dataclass(frozen=True, slots=True)
class Headed:
    """What is learned beneath the head, and which head. `pooler`: what stands between the last layer and a sequence's
    head is trained, too."""

    method: PromptTuning | PTuning | PrefixTuning | Lora
    head: HeadKind
    pooler: bool = False

    @property
    def virtual_tokens(self) -> int:
        return 0 if isinstance(self.method, Lora) else self.method.virtual_tokens

    @property
    def prefix(self) -> int:
        """How many of them are keys and values."""
        return self.virtual_tokens if isinstance(self.method, PrefixTuning) else 0


def headed(recipe: PTuningV2) -> Headed:
    """P-tuning v2: a prefix under a head."""
    prefix = PrefixTuning(
        kind="prefix_tuning",
        virtual_tokens=recipe.virtual_tokens,
        projection=recipe.projection,
        encoder_hidden_size=recipe.encoder_hidden_size,
    )
    return Headed(prefix, recipe.head, recipe.pooler)
