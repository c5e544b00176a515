"""What all of a teacher's inputs begin with: read by the frozen base once, and never again for any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from softmux.tuning.bases.base import Base
from softmux.tuning.bases.encoder_decoder import EncoderDecoderBase
from softmux.tuning.data.rows import Batch, Row
from softmux.tuning.evaluate import Speaker, answered

Embed = Callable[[Batch], torch.Tensor]
"""The embeddings of a batch's tokens, learned vectors among them."""

_ATTENDING = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """An `evaluate.Speaker` whose rows all begin with the same `prefix` tokens. `layers` has their keys and values,
    `[1, kv_heads, prefix, head_dim]` each, which every row is given instead of them."""

    base: Base
    embed: Embed
    prefix: int
    layers: tuple[tuple[torch.Tensor, torch.Tensor], ...]

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.base.collate(rows, self.prefix)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        past = DynamicCache()
        for layer, (keys, values) in enumerate(self.layers):
            past.update(*(x.expand(len(batch.tokens), -1, -1, -1) for x in (keys, values)), layer)
        return self.base.inputs(batch, self.embed(batch), past)


@torch.no_grad()
def shared_prompt(base: Base, embed: Embed, whole: Speaker, rows: Sequence[Row], max_tokens: int) -> Speaker:
    """`whole`, with what the inputs of all rows begin with read once; at least one token of each is left out of it.

    It is `whole` itself where nothing is shared, or where rows behind shared keys are not exactly what they are as a
    whole: for an encoder-decoder, whose input is read in both directions; where layers do not attend, or see less far
    back than the longest row with `max_tokens` more is; and where the longest and the shortest row, tried, differ.
    """
    tokens = _common([row.ids for row in rows])
    shortest, longest = (pick(rows, key=lambda row: len(row.ids)) for pick in (min, max))
    if tokens < 1 or isinstance(base, EncoderDecoderBase) or not _sees(base, len(longest.ids) + max_tokens):
        return whole
    past = DynamicCache()
    batch = base.collate([Row(shortest.ids[:tokens], ())])
    base.model(**base.inputs(batch, embed(batch), past), use_cache=True, logits_to_keep=1)
    shared = SharedPrompt(base, embed, tokens, tuple((layer.keys, layer.values) for layer in past.layers))
    tried = [Row(row.ids, ()) for row in (shortest, longest)]
    return shared if _alike(answered(base, whole, tried, 1), answered(base, shared, tried, 1), base) else whole


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all begin with, and are of none of them the whole."""
    first, last = min(rows), max(rows)
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _sees(base: Base, length: int) -> bool:
    """Whether each token of a row of so many sees all that is before it, in every layer."""
    config = base.model.config.get_text_config()
    attends = set(getattr(config, "layer_types", None) or ()) <= _ATTENDING
    return attends and all(length <= window for window in base.windows)


def _alike(whole: Sequence[Row], shared: Sequence[Row], base: Base) -> bool:
    """Whether what the output head is given is the same but for rounding."""
    allowed = 1e-3 if base.model.dtype == torch.float32 else 0.08
    states = [torch.stack([torch.from_numpy(row.taught) for row in rows]) for rows in (whole, shared)]
    return bool((states[0] - states[1]).norm() <= allowed * states[0].norm())
