"""A base that speaks with something before a user's text: an adapter, whatever its method, as the parts that its files
were read into; a long text around it; or neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from softmux.formats.layout import Layout, lay_out
from softmux.formats.parts import LoraLayer, LoraPart, Parts, PrefixPart, PromptPart
from softmux.tuning.bases.base import Base
from softmux.tuning.bases.reading import Pick
from softmux.tuning.data.rows import Batch, Row
from softmux.tuning.evaluate import See, answered, continued, likeliest
from softmux.tuning.recipes.distillation import INPUT
from softmux.tuning.voices.shared_prompt import Past, cache_of

SPOKEN = (PromptPart, PrefixPart, LoraPart)
"""The kinds of parts that a voice is made of."""


@dataclass(frozen=True, slots=True)
class Voice:
    """A base with an adapter's parts, each of a kind in `SPOKEN`, and its layout; without any, the bare base. `text`
    holds `{input}` once, where a user's text goes. `past` are a prefix's keys and values. A `Speaker`. It speaks
    within `speaking()`, which lends its LoRA to the base."""

    base: Base
    layout: Layout = field(default_factory=Layout)
    text: str = INPUT
    vectors: torch.Tensor | None = None
    past: Past = ()
    low_rank: Mapping[str, LoraLayer] = field(default_factory=dict)

    @classmethod
    def of(cls, base: Base, layout: Layout, parts: Parts) -> Voice:
        voice = cls(base, layout)
        for part in parts:
            match part:
                case PromptPart():
                    voice = replace(voice, vectors=torch.from_numpy(part.vectors.copy()).to(base.device))
                case PrefixPart():
                    sides = (
                        torch.from_numpy(x.copy()).to(base.device).transpose(1, 2) for x in (part.keys, part.values)
                    )
                    keys, values = (side.split(1) for side in sides)
                    voice = replace(voice, past=tuple(zip(keys, values, strict=True)))
                case LoraPart():
                    voice = replace(voice, low_rank=part.layers)
                case _:
                    raise TypeError(f"a voice has no {part.kind}")
        return voice

    @property
    def prefix(self) -> int:
        """How many tokens' keys and values come before the input."""
        return int(self.past[0][0].shape[2]) if self.past else 0

    def ids(self, prompt: str) -> tuple[int, ...]:
        """The input for what a user sends. Raises `InvalidRequest` where the layout can't take it."""
        words = self.text.replace(INPUT, prompt)
        return lay_out(self.layout, self.base.encoder, vocab_size=self.base.vocab_size, prompt=words)

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.base.collate(rows, self.prefix)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        embeddings = self.base.model.get_input_embeddings()(batch.tokens)
        if self.vectors is not None:
            at = batch.virtual >= 0
            embeddings = embeddings.index_put(torch.where(at), self.vectors.to(embeddings.dtype)[batch.virtual[at]])
        past = cache_of(self.past, len(batch.tokens), embeddings.dtype) if self.past else None
        return self.base.inputs(batch, embeddings, past)

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
        rows = [Row(ids, ()) for ids in inputs]
        with self.speaking():
            return continued(self.base, self, rows, max_tokens, pick)

    def taught(
        self,
        inputs: Sequence[tuple[int, ...]],
        max_tokens: int,
        pick: Pick = likeliest,
        see: See | None = None,
    ) -> list[Row]:
        """The same as rows that are taught by this voice: with what the output head was given before each token of
        their answers, from which its logits are made again, over the whole vocabulary, exactly, wherever they are
        needed."""
        rows = [Row(ids, ()) for ids in inputs]
        with self.speaking():
            return answered(self.base, self, rows, max_tokens, pick, see)


def _adds(layer: LoraLayer, device: torch.device) -> Any:
    a, b = (torch.from_numpy(np.ascontiguousarray(x)).to(device) for x in (layer.a, layer.b))

    def add(_module: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = given[0]
        return output + (layer.scaling * ((x @ a.T.to(x.dtype)) @ b.T.to(x.dtype))).to(output.dtype)

    return add
