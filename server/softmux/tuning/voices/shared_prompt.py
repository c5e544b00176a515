"""What all rows begin with: read by the frozen base once, and never again for any of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from softmux.tuning.bases.base import Base
from softmux.tuning.bases.encoder_decoder import EncoderDecoderBase
from softmux.tuning.data.rows import Batch, Row
from softmux.tuning.frozen.decoder import heard
from softmux.tuning.frozen.module import rounding
from softmux.tuning.voices.speaker import Speaker

Past = tuple[tuple[torch.Tensor, torch.Tensor], ...]
"""Of each layer keys and values, `[1, kv_heads, tokens, head_dim]` each."""

_ATTENDING = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class SharedPrompt:
    """The `speaker`, whose rows all begin with the same `prefix` tokens. `past` has their keys and values, which every
    row is given instead of them."""

    base: Base
    speaker: Speaker
    prefix: int
    past: Past

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.base.collate(rows, self.prefix)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        return self.speaker.inputs(batch) | {"past_key_values": cache_of(self.past, len(batch.tokens))}


def cache_of(past: Past, rows: int, dtype: torch.dtype | None = None) -> DynamicCache:
    """What so many rows are given, each the same."""
    cache = DynamicCache()
    for layer, sides in enumerate(past):
        cache.update(*(side.to(dtype or side.dtype).expand(rows, -1, -1, -1) for side in sides), layer)
    return cache


@torch.no_grad()
def shared_prompt(base: Base, speaker: Speaker, rows: Sequence[Row], more: int) -> Speaker:
    """The speaker, with what the inputs of all rows begin with read once; at least one token of each is left out of it.

    It is the speaker itself where nothing is shared, or where rows behind shared keys are not exactly what they are as
    a whole: for an encoder-decoder, whose input is read in both directions; where layers do not attend, or see less far
    back than the longest row with `more` tokens is; and where the longest and the shortest row, tried, differ.
    """
    tokens = _common([row.ids for row in rows])
    if tokens <= speaker.prefix or isinstance(base, EncoderDecoderBase):
        return speaker
    if not _sees(base, max(row.length for row in rows) + more):
        return speaker
    shortest, longest = (Row(pick(rows, key=lambda row: len(row.ids)).ids, ()) for pick in (min, max))
    inputs = speaker.inputs(speaker.collate([Row(shortest.ids[:tokens], ())]))
    past = DynamicCache() if inputs["past_key_values"] is None else inputs["past_key_values"]
    base.model(**inputs | {"past_key_values": past}, use_cache=True, logits_to_keep=1)
    shared = SharedPrompt(base, speaker, tokens, tuple((layer.keys, layer.values) for layer in past.layers))
    whole, behind = (_heard(base, each, [shortest, longest]) for each in (speaker, shared))
    alike = (whole - behind).norm() <= rounding(base.model.dtype) * whole.norm()
    return shared if alike else speaker


def _common(rows: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all begin with, and are of none of them the whole."""
    if len(rows) < 2:
        return 0
    first, last = min(rows), max(rows)
    most = min(map(len, rows)) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def _sees(base: Base, length: int) -> bool:
    """Whether each token of a row of so many sees all that is before it, in every layer."""
    config = base.model.config.get_text_config()
    attends = set(getattr(config, "layer_types", None) or ()) <= _ATTENDING
    return attends and all(length <= window for window in base.windows)


def _heard(base: Base, speaker: Speaker, rows: Sequence[Row]) -> torch.Tensor:
    """`[rows, hidden]`, what the output head is given of the rows' last tokens."""
    with heard(base.model.get_output_embeddings()) as seen:
        base.model(**speaker.inputs(speaker.collate(rows)), logits_to_keep=1)
    return seen[0].float()
