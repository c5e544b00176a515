"""What a task learns, as PEFT builds it: its configs, its prompt encoders, its saved form.

prompt tuning   k vectors in front of the input, learned directly
P-tuning        k vectors made by an MLP or an LSTM, in front of the input or where a template puts them
prefix tuning   k keys and values a layer, made by a two-layer MLP where `projection` is on
LoRA            updates of low rank to linear modules; alone, or trained together with a prefix
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from softmux.errors import InvalidRequest
from softmux.formats.layout import Layout
from softmux.formats.template import Template
from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import IGNORE, Batch, Row
from softmux.tuning.learned.peft_configs import lora_config, soft_config
from softmux.tuning.learned.peft_parts import (
    low_rank_layers,
    low_rank_model,
    low_rank_values,
    peft_model,
    prompt_encoder,
    put_parts,
)
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning, PTuning
from softmux.tuning.training.cohort import Start
from softmux.types import Method

SoftRecipe = PromptTuning | PTuning | PrefixTuning | LoraPrefixTuning


@dataclass(frozen=True, slots=True)
class Learned:
    """What one task learns over a frozen base. `peft` is PEFT's model of the soft prompt, or of the LoRA that is alone;
    `lora` that of a LoRA beside a soft prompt. A LoRA's layers are within `base.model`, where PEFT has put them."""

    base: Base
    layout: Layout
    peft: Any
    lora: Any = None

    @property
    def device(self) -> torch.device:
        return self.base.device

    @property
    def soft(self) -> torch.nn.Module | None:
        """The prompt encoder; None for a LoRA alone."""
        return prompt_encoder(self.peft)

    @property
    def prefix(self) -> int:
        """How many tokens' keys and values come before the input."""
        return self.layout.virtual_tokens if self.layout.method == "prefix_tuning" else 0

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        if self.soft is not None:
            yield from self.soft.parameters()
        low_rank = self.peft if self.soft is None else self.lora
        if low_rank is not None:
            yield from (parameter for name, parameter in low_rank.named_parameters() if ".lora_" in name)

    def train(self, on: bool) -> None:
        """The base stays as it is served; what makes the vectors may have dropout."""
        if self.soft is not None:
            self.soft.train(on)

    def losses(self, rows: Sequence[Row]) -> torch.Tensor:
        """Of the answers' tokens, row by row; the prompt's own weigh nothing."""
        found: dict[int, torch.Tensor] = {}
        for alike in self.base.batches(rows, len(rows), prefix=self.prefix):
            chosen = sorted(alike)
            batch = self.collate([rows[i] for i in chosen])
            logits = self.base.answering(self.inputs(batch), batch)
            kept = batch.targets != IGNORE
            losses = cross_entropy(logits[kept], batch.targets[kept], reduction="none")
            found.update(zip(chosen, losses.split([len(rows[i].answer) for i in chosen]), strict=True))
        return torch.cat([found[i] for i in range(len(rows))])

    def bare(self) -> AbstractContextManager[Any]:
        """Within it `base.model` is the bare model."""
        low_rank = self.peft if self.soft is None else self.lora
        without: AbstractContextManager[Any] = low_rank.disable_adapter() if low_rank is not None else nullcontext()
        return without

    def collate(self, rows: Sequence[Row]) -> Batch:
        return self.base.collate(rows, self.prefix)

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the frozen module is called with: embeddings with the learned vectors in them, or a cache that begins
        with the learned keys and values. Gradients flow to the learned parameters alone."""
        embeddings = self.base.model.get_input_embeddings()(batch.tokens)
        past = None
        if self.prefix:
            past = self.peft.get_prompt(batch_size=len(batch.tokens))
        elif self.soft is not None:
            at = batch.virtual >= 0
            vectors = self.peft.get_prompt(batch_size=1)[0].to(embeddings.dtype)
            embeddings = embeddings.index_put(torch.where(at), vectors[batch.virtual[at]])
        return self.base.inputs(batch, embeddings, past)


def begin(recipe: SoftRecipe | Lora, base: Base, words: Sequence[str] = ()) -> Learned:
    """Fresh numbers to learn. Random parts come from torch's global generator: seed it first. `words` are the task's
    labels, for vectors that begin as their embeddings. Raises `InvalidRequest` where these are needed and missing."""
    if isinstance(recipe, Lora):
        return Learned(base, Layout(0, None, "lora"), _low_rank(base, recipe))
    lora = _low_rank(base, recipe) if isinstance(recipe, LoraPrefixTuning) else None
    try:
        config = soft_config(
            recipe, base.task_type, base.tokenizer, vectors=base.vector_options, prefixes=base.prefix_options
        )
        peft = peft_model(base.model, config).to(base.device)
    except BaseException:
        if lora is not None:
            lora.unload()
        raise
    template = recipe.template if isinstance(recipe, PTuning) else None
    method: Method = "prefix_tuning" if isinstance(recipe, LoraPrefixTuning) else recipe.kind
    layout = Layout(recipe.virtual_tokens, Template.parse(template) if template else None, method)
    learned = Learned(base, layout, peft, lora)
    if isinstance(recipe, PromptTuning) and recipe.begins == "labels":
        _begin_with(words, learned)
    for parameter in learned.parameters():  # the second of a pair has frozen the first
        parameter.requires_grad_(True)
    return learned


def start_of(learned: Learned) -> Start:
    """Its numbers as they are, for `many.Trainer`. A LoRA's stay those of the layers that PEFT has put in: copy before
    they are taken out."""
    pairs, scaling = low_rank_values(_low_rank_layers(learned))
    return Start(learned.soft, learned.layout.virtual_tokens, learned.prefix > 0, pairs, scaling)


@torch.no_grad()
def put(learned: Learned, values: Mapping[str, torch.Tensor]) -> None:
    """Writes what was learned, by `Start`'s names, into PEFT's modules."""
    put_parts(learned.soft, _low_rank_layers(learned), values)


@contextmanager
def lent(learned: Learned) -> Iterator[Learned]:
    """What `begin` has put into a base, until the block ends, however it does: the base is then as it was."""
    try:
        yield learned
    finally:
        take_out(learned)


def take_out(learned: Learned) -> None:
    """Gives the base back as it was: without the LoRA's layers, if it has any."""
    low_rank = learned.peft if learned.soft is None else learned.lora
    if low_rank is not None:
        low_rank.unload()
    learned.base.model.requires_grad_(False)


def _low_rank_layers(learned: Learned) -> Iterator[tuple[str, Any]]:
    if learned.soft is None or learned.lora is not None:
        yield from low_rank_layers(learned.base.model)


@torch.no_grad()
def _begin_with(words: Sequence[str], learned: Learned) -> None:
    ids = [token for word in words for token in learned.base.encoder.encode(word, add_special_tokens=False)]
    if not ids:
        raise InvalidRequest('init = "labels" begins with the words of labels: name them in labels.', param="labels")
    count = learned.layout.virtual_tokens
    which = torch.tensor((ids * -(-count // len(ids)))[:count], device=learned.device)
    assert learned.soft is not None
    next(learned.soft.parameters()).copy_(learned.base.model.get_input_embeddings()(which))


def _low_rank(base: Base, recipe: Lora | LoraPrefixTuning) -> Any:
    config = lora_config(recipe, base.task_type)
    return low_rank_model(base.model, config, base.model, base.label).to(base.device)
