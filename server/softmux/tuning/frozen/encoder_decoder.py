"""A frozen encoder-decoder, run with gradients over rows of many tasks.

A pack's rows are laid out as two padded inputs: `[rows, longest input]` for the encoder, and for the decoder
`[rows, longest answer]` behind what every answer begins with. Padding is on the right, where a decoder's past never
sees it and the mask hides it from everybody else, so that a row's values do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy, embedding
from transformers import DynamicCache, EncoderDecoderCache

from softmux.tuning.bases.base import Base
from softmux.tuning.bases.encoder_decoder import EncoderDecoderBase, decoder_layers
from softmux.tuning.frozen.attention import PaddedAttention
from softmux.tuning.frozen.decoder import FrozenBase
from softmux.tuning.frozen.low_rank import LowRank
from softmux.tuning.frozen.packing import Members, Packed, Placed, packs
from softmux.tuning.frozen.tables import Tables


class FrozenEncoderDecoder(FrozenBase):
    """As `FrozenBase`, by the module's own attention. `begins`: what comes before a text that its decoder is to say;
    `heads` its heads in a layer. `layers`: the encoder's, for which a prefix is made."""

    says_inputs = False

    def __init__(
        self,
        model: Any,
        begins: Sequence[int],
        heads: int,
        *,
        checkpointing: bool = False,
        teacher: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        super().__init__(model, attention=PaddedAttention(), checkpointing=checkpointing, teacher=teacher)
        self._begins = torch.tensor(begins, device=self.device)
        self._heads = heads
        self._decoder_layers = decoder_layers(model.config)

    @contextmanager
    def running(self) -> Iterator[None]:
        restore = self._checkpointed() if self.checkpointing else []
        try:
            yield
        finally:
            for layer in restore:
                del layer.forward

    def packs(self, rows: Sequence[Placed], tokens: int) -> Iterator[list[Placed]]:
        """All rows of a pack have prefixes of one length: a decoder's positions begin behind them."""
        for prefix in sorted({place.prefix for _, place in rows}):
            yield from packs([placed for placed in rows if placed[1].prefix == prefix], tokens)

    def alone(self, ids: torch.Tensor, answer_tokens: int) -> torch.Tensor:
        source, answer = ids[:-answer_tokens], ids[-answer_tokens:]
        said = torch.cat([self._begins, answer[:-1]])
        logits = self.model(input_ids=source[None], decoder_input_ids=said[None], use_cache=False).logits[0].float()
        return cross_entropy(logits[len(self._begins) - 1 :], answer, reduction="none")

    def _logits(self, packed: Packed, tables: Tables, noise: torch.Tensor | None) -> torch.Tensor:
        embeddings = self._embedded(packed, tables, noise)
        begins = packed.cu_q[:-1].long()
        answers = torch.tensor(packed.answers, device=self.device)
        inputs = packed.cu_q[1:].long() - begins - answers
        source, real = _columns(begins, inputs)
        target, said = _columns(begins + inputs, answers)
        tokens = torch.cat([self._begins.expand(len(begins), -1), packed.tokens[target[:, :-1]]], dim=1)
        past = self._past(packed, tables)
        lead = len(self._begins) - 1

        def wanted(_: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            hidden, *others = given
            return hidden[:, lead:][said][None], *others

        head = self.model.get_output_embeddings().register_forward_pre_hook(wanted, prepend=True)
        try:
            for rows in packed.low_rank:
                self._hooks.extend(self._attach((tables.low_rank or {})[rows.cohort], rows, begins))
            logits: torch.Tensor = self.model(
                inputs_embeds=embeddings[source],
                attention_mask=real.long(),
                decoder_input_ids=tokens,
                past_key_values=past,
                use_cache=past is not None,
            ).logits[0]
        finally:
            head.remove()
            if not (self.checkpointing and torch.is_grad_enabled()):
                self.detach()
        return logits

    def _past(self, packed: Packed, tables: Tables) -> EncoderDecoderCache | None:
        """The rows' prefixes, dealt out to the decoder's layers as PEFT does, and `formats.methods.prefix` says."""
        if packed.prefix_from is None:
            return None
        assert tables.prefixes is not None
        shape = (len(packed.answers), -1, self.layers, 2, self._heads, tables.prefixes.shape[1] // self._per_head)
        made = embedding(packed.prefix_from, tables.prefixes).view(shape).to(self.dtype)
        by_layer = made.permute(2, 3, 0, 4, 1, 5)
        pairs = [tuple(by_layer[2 * layer % self.layers]) for layer in range(self._decoder_layers)]
        past = EncoderDecoderCache(_Before(pairs), _Passing())
        past.is_updated = _Never()
        return past

    @property
    def _per_head(self) -> int:
        """By so much a prefix token's numbers are more than one head's keys of one layer."""
        return 2 * self.layers * self._heads

    def _attach(self, low_rank: LowRank, rows: Members, begins: torch.Tensor) -> Iterator[Any]:
        """Hooks that add a cohort's updates to the rows that are its members', on whichever side a module is."""
        owners = torch.full_like(begins, -1)  # of each row the member
        owners[torch.bucketize(rows.at, begins, right=True) - 1] = rows.members[rows.flat // rows.padded.shape[1]]
        at = torch.nonzero(owners >= 0)[:, 0]
        for name, (a, b) in low_rank.updates.items():
            module = self.model.get_submodule(name)
            yield module.register_forward_hook(_adds(a, b, low_rank.scaling, at, owners[at], len(begins)))


class _Before(DynamicCache):  # type: ignore[misc]  # transformers is untyped here
    """Keys and values that come before a layer's own, which are not kept: a layer may run twice."""

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kept = self.layers[layer]
        return torch.cat([kept.keys, key], dim=2), torch.cat([kept.values, value], dim=2)


class _Passing(DynamicCache):  # type: ignore[misc]  # transformers is untyped here
    """Keeps nothing of the source's keys and values."""

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value


class _Never(dict[int, bool]):
    """What a cache says of its cross-attention's layers: none of them has been computed."""

    def __setitem__(self, layer: int, computed: bool) -> None:
        pass


def _columns(begin: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[rows, longest]`: the packed places of runs that begin there, padded with their first, and which are true."""
    within = torch.arange(int(lengths.max()), device=begin.device)
    real = within < lengths[:, None]
    return begin[:, None] + torch.where(real, within, 0), real


def _adds(
    a: torch.Tensor, b: torch.Tensor, scaling: float, at: torch.Tensor, members: torch.Tensor, rows: int
) -> Callable[..., torch.Tensor]:
    def add(_module: Any, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        x = given[0].reshape(rows, -1, given[0].shape[-1]).index_select(0, at)
        down, up = (w.index_select(0, members).to(x.dtype).transpose(1, 2) for w in (a, b))
        delta = (x @ down) @ up * scaling
        return output.reshape(rows, -1, output.shape[-1]).index_add(0, at, delta.to(output.dtype)).view_as(output)

    return add


def frozen_over(base: Base, model: Any = None, **options: Any) -> FrozenBase:
    """`base` (or `model`, which is a copy of its) as what tasks are trained over. Options are `FrozenBase`'s."""
    model = base.model if model is None else model
    if isinstance(base, EncoderDecoderBase):
        return FrozenEncoderDecoder(model, base.says.begins, base.prefix_options["num_attention_heads"], **options)
    return FrozenBase(model, **options)
