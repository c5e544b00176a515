"""What a task learns, as PEFT builds it: its configs, its prompt encoders, its saved form.

prompt tuning   k vectors in front of the input, learned directly
P-tuning        k vectors made by an MLP or an LSTM, in front of the input or where a template puts them
prefix tuning   k keys and values a layer, made by a two-layer MLP where `projection` is on
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from softmux.formats.layout import Layout
from softmux.formats.template import Template
from softmux.tuning.base import Base
from softmux.tuning.recipe import MethodRecipe, PrefixTuning, PromptTuning
from softmux.tuning.rows import Batch, Row, collate

try:
    from peft import PeftConfig, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error

_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Learned:
    """The learned vectors of one task over a frozen base. `peft` is PEFT's model: its encoder holds the parameters."""

    base: Base
    layout: Layout
    peft: Any

    @property
    def encoder(self) -> torch.nn.Module:
        encoder: torch.nn.Module = self.peft.prompt_encoder[_ADAPTER]
        return encoder

    @property
    def prefix(self) -> int:
        """How many tokens' keys and values come before the input."""
        return self.layout.virtual_tokens if self.layout.method == "prefix_tuning" else 0

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return self.encoder.parameters()

    def collate(self, rows: Sequence[Row]) -> Batch:
        return collate(rows, prefix=self.prefix, device=self.base.device)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the frozen module is called with: embeddings with the learned vectors in them, or a cache that begins
        with the learned keys and values. Gradients flow to the learned parameters alone."""
        embeddings = self.base.model.get_input_embeddings()(batch.tokens)
        past = None
        if self.prefix:
            past = self.peft.get_prompt(batch_size=len(batch.tokens))
        else:
            at = batch.virtual >= 0
            vectors = self.peft.get_prompt(batch_size=1)[0].to(embeddings.dtype)
            embeddings = embeddings.index_put(torch.where(at), vectors[batch.virtual[at]])
        return {
            "inputs_embeds": embeddings,
            "attention_mask": batch.mask,
            "position_ids": batch.positions,
            "past_key_values": past,
        }


def begin(recipe: MethodRecipe, base: Base) -> Learned:
    """Fresh learned vectors. Random parts come from torch's global generator: seed it first."""
    torch_config = _config(recipe, base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of options we set on purpose
        peft = get_peft_model(base.model, torch_config)
    peft.to(base.device)
    template = getattr(recipe, "template", None)
    layout = Layout(recipe.virtual_tokens, Template.parse(template) if template else None, recipe.kind)
    return Learned(base, layout, peft)


def _config(recipe: MethodRecipe, base: Base) -> PeftConfig:
    common: dict[str, Any] = {"task_type": "CAUSAL_LM", "num_virtual_tokens": recipe.virtual_tokens}
    if isinstance(recipe, PromptTuning):
        if recipe.init_text is None:
            return PromptTuningConfig(prompt_tuning_init="SAMPLE_VOCAB", **common)
        return PromptTuningConfig(
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text=recipe.init_text,
            tokenizer_name_or_path=base.tokenizer.name_or_path,
            **common,
        )
    if isinstance(recipe, PrefixTuning):
        return PrefixTuningConfig(
            prefix_projection=recipe.projection, encoder_hidden_size=recipe.encoder_hidden_size, **common
        )
    return PromptEncoderConfig(
        encoder_reparameterization_type=recipe.encoder, encoder_hidden_size=recipe.encoder_hidden_size, **common
    )
