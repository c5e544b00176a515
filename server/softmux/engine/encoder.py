"""A frozen encoder (BERT and its kin), run as decoders are: packed, over the same attention backends and KV slots.

Every position attends to its whole row, a trained prefix included, so a row runs whole in one step, and nothing of it
is kept. There are no logits: heads read the last hidden states.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn
from transformers import AutoModel

from softmux.engine.attention.base import PackedRows
from softmux.engine.encoder_layers import EncoderLayers
from softmux.engine.numbering import numbering
from softmux.engine.packed import PackedModel
from softmux.engine.poolers import base_head, pooler_of
from softmux.engine.serves import SERVES
from softmux.errors import SelfTestFailed
from softmux.formats.parts import POOLER
from softmux.formats.peft_types import takes_prefix
from softmux.types import ModelSpec


class PackedEncoder(PackedModel):
    """`position_offset`: the number that the module gives to a row's first position (RoBERTa counts from its padding
    token's id on), as it shows when it is asked."""

    causal = False
    loads_as: Any = AutoModel

    def __init__(self, module: nn.Module, folder: Path | None, model_id: str) -> None:
        if getattr(module.config, "is_decoder", False):
            raise SelfTestFailed(f"{model_id}'s config makes a decoder of it (is_decoder); set it to false")
        super().__init__(module, folder, model_id)
        two = self.embedding(torch.zeros(2, dtype=torch.int64, device=self.device))
        self.position_offset, self._positions = numbering(self.module, lambda: self.eager(two))
        self.pooler = pooler_of(self.module, folder)
        kind = self.config.model_type
        self.reads_mean = kind == "modernbert" and self.config.classifier_pooling == "mean"
        self.through = EncoderLayers.of(self.module, self._attend_straight)
        self._narrow = False

    def forward(
        self, embeddings: torch.Tensor, positions: torch.Tensor, wanted: torch.Tensor, rows: PackedRows
    ) -> torch.Tensor:
        """As `PackedModel.forward`, without any logits to give."""
        self._narrow = self.through is not None and self.through.at is not None
        try:
            return super().forward(embeddings, positions + self.position_offset, wanted[:0], rows)
        finally:
            if self.through is not None:
                self.through.at = None

    def _attend_straight(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        self.on_layer()
        attended: torch.Tensor = self._backend.attend(
            layer, query, key, value, scaling=scaling, window=None, softcap=None
        )
        return attended

    def will_read(self, at: torch.Tensor | None, tokens: int) -> None:
        if self.through is not None:
            self.through.read(at, tokens)

    def states(self, at: torch.Tensor) -> torch.Tensor:
        return self._last if self._narrow else super().states(at)

    def eager(self, embeddings: torch.Tensor) -> torch.Tensor:
        """The reference: the module as it is, one row → its last hidden states `[tokens, state_width]`."""
        self.module.set_attn_implementation("eager")
        try:
            output = self.module(inputs_embeds=embeddings[None])
        finally:
            if self._backend is not None:
                self.module.set_attn_implementation(self._attention)
        states: torch.Tensor = output[0][0]
        return states

    @property
    def context_length(self) -> int:
        return min(self._positions, super().context_length) - self.position_offset

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return ()

    @property
    def state_width(self) -> int:
        return int(self.config.hidden_size)

    def spec(self, context_length: int) -> ModelSpec:
        described = super().spec(context_length)
        serves = SERVES["encoder"]
        if not takes_prefix(described.model_type):
            serves -= {"prefix"}
        if self.pooler is None:
            serves -= {POOLER}
        if described.hidden_size != self.state_width:  # ELECTRA's small embeddings: PEFT's vectors are wider
            serves -= {"prompt"}
        return msgspec.structs.replace(
            described, family="encoder", serves=serves, hidden_size=self.state_width, output_embedding="",
            tied_embeddings=False, base_head=base_head(self.config),
        )  # fmt: skip
