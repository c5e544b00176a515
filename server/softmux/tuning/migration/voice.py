"""A base that speaks with an adapter: whatever the adapter's method, as the parts that its files were read into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from softmux.formats.layout import Layout, lay_out
from softmux.formats.parts import LoraLayer, LoraPart, Parts, PrefixPart, PromptPart
from softmux.tuning.bases.base import Base
from softmux.tuning.bases.reading import Pick
from softmux.tuning.data.rows import Batch, Row, collate
from softmux.tuning.evaluate import answered, continued, likeliest

BATCH = 16

SPOKEN = (PromptPart, PrefixPart, LoraPart)
"""The kinds of parts that a voice is made of."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A base with an adapter's parts, each of a kind in `SPOKEN`, and its layout; without any, the bare base. An
    `evaluate.Speaker`. It speaks within `speaking()`, which lends its LoRA to the base."""

    base: Base
    layout: Layout = field(default_factory=Layout)
    vectors: torch.Tensor | None = None
    past: tuple[torch.Tensor, torch.Tensor] | None = None
    """Keys and values, `[layers, k, kv_heads, head_dim]` each."""
    low_rank: Mapping[str, LoraLayer] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Base, layout: Layout, parts: Parts) -> Voice:
        voice = cls(base, layout)
        for part in parts:
            match part:
                case PromptPart():
                    voice = replace(voice, vectors=torch.from_numpy(part.vectors.copy()).to(base.device))
                case PrefixPart():
                    keys, values = (torch.from_numpy(x.copy()).to(base.device) for x in (part.keys, part.values))
                    voice = replace(voice, past=(keys, values))
                case LoraPart():
                    voice = replace(voice, low_rank=part.layers)
                case _:
                    raise TypeError(f"a voice has no {part.kind}")
        return voice

    @property
    def prefix(self) -> int:
        """How many tokens' keys and values come before the input."""
        return 0 if self.past is None else int(self.past[0].shape[1])

    def ids(self, prompt: str) -> tuple[int, ...]:
        """The input for what a user sends. Raises `InvalidRequest` where the layout can't take it."""
        return lay_out(self.layout, self.base.encoder, vocab_size=self.base.vocab_size, prompt=prompt)

    def collate(self, rows: Sequence[Row]) -> Batch:
        return collate(rows, prefix=self.prefix, device=self.base.device)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        embeddings = self.base.model.get_input_embeddings()(batch.tokens)
        if self.vectors is not None:
            at = batch.virtual >= 0
            embeddings = embeddings.index_put(torch.where(at), self.vectors.to(embeddings.dtype)[batch.virtual[at]])
        return {
            "inputs_embeds": embeddings,
            "attention_mask": batch.mask,
            "position_ids": batch.positions,
            "past_key_values": self._past(len(batch.tokens), embeddings.dtype),
        }

    def _past(self, rows: int, dtype: torch.dtype) -> DynamicCache | None:
        if self.past is None:
            return None
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(zip(*self.past, strict=True)):
            k, v = (x.to(dtype).transpose(0, 1)[None].expand(rows, -1, -1, -1) for x in (keys, values))
            cache.update(k, v, layer)
        return cache

    @contextmanager
    def speaking(self) -> Iterator[None]:
        hooks = [
            self.base.model.get_submodule(name).register_forward_hook(_adds(layer, self.base.device))
            for name, layer in self.low_rank.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def answers(
        self, inputs: Sequence[tuple[int, ...]], max_tokens: int, pick: Pick = likeliest
    ) -> list[tuple[int, ...]]:
        """What it says to each, the end token included where it came in time."""
        with self.speaking():
            return continued(self.base, self, [Row(ids, ()) for ids in inputs], max_tokens, pick)

    def taught(self, inputs: Sequence[tuple[int, ...]], max_tokens: int) -> list[Row]:
        """The same, greedy, as rows that are taught by this voice: with what the output head was given before each
        token of their answers."""
        with self.speaking():
            return answered(self.base, self, [Row(ids, ()) for ids in inputs], max_tokens)


def _adds(layer: LoraLayer, device: torch.device) -> Any:
    a, b = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (layer.a, layer.b))

    def add(_module: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = given[0]
        return output + (layer.scaling * ((x @ a.T.to(x.dtype)) @ b.T.to(x.dtype))).to(output.dtype)

    return add
