"""The frozen base that tasks with a head are tuned over, without its own: loaded once, in float32, never changed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers import logging as transformers_logging

from softmux.engine.bases import family_of
from softmux.engine.fingerprint import base_fingerprint
from softmux.errors import InvalidRequest
from softmux.formats.peft_types import takes_prefix, why_not
from softmux.tuning.bases.base import Base, OverBase, config_of, device_of, label_of, source_of
from softmux.types import Family

_CLASSES: dict[str, Any] = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}


@dataclass(frozen=True, slots=True)
class HeadBase:
    """`model` is the encoder, or decoder, without a head. `label` is its name, `fingerprint` what servers know it by
    (None for a hub id). `has_pooler`: whether what stands before a sequence's head is in the checkpoint. `within`: what
    its modules' names begin with in the module that is run, where it is a part of that."""

    source: str
    label: str
    fingerprint: str | None
    tokenizer: Any
    model: Any
    has_pooler: bool
    family: Family = "encoder"
    within: str = ""

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def vocab_size(self) -> int:
        return int(self.model.get_input_embeddings().weight.shape[0])

    def classifier(self, head: str, labels: int) -> Any:
        """This base under a fresh head, in evaluation mode. The head comes from torch's global generator; all else
        is the base's own, and what takes a module's place in one classifier takes it in no other.

        Raises `InvalidRequest` where the model has no such head, one of another build, or none of what it stands on.
        """
        config = copy.deepcopy(self.model.config)
        config.num_labels = labels
        try:
            with torch.device("meta"):
                model = _CLASSES[head].from_config(config)
        except ValueError as error:
            raise InvalidRequest(f"{self.label} ({config.model_type}) has no {head} head.", param="base") from error
        empty = getattr(model, model.base_model_prefix)
        if getattr(empty, "pooler", None) is not None and getattr(self.model, "pooler", None) is None:
            raise InvalidRequest(
                f"{self.label} was loaded without the pooler that a {head} head of {type(model).__name__} stands on: "
                "load it with AutoModel, or give its folder.",
                param="base",
            )
        shared = copy.copy(self.model)  # RoBERTa's classifiers leave the pooler out
        shared._modules = {
            name: None if getattr(empty, name, None) is None else part for name, part in self.model._modules.items()
        }
        setattr(model, model.base_model_prefix, shared)
        own = output_of(model)
        if own is not None:
            own.to_empty(device=self.device).apply(model._init_weights)
        if own is None or any(part.is_meta for part in model.parameters()):
            raise InvalidRequest(f"{type(model).__name__}'s head is of a build that softmux can't tune.", param="base")
        if self.family == "decoder":
            model.config.pad_token_id = -1  # a row's last token is read, whichever it is
        return model.eval()

    def whole(self, head: str, labels: int) -> Any:
        """A copy of the encoder of its own, under a fresh head, in evaluation mode."""
        model, _ = _quietly(_CLASSES[head], self.source, num_labels=labels)
        return model.to(self.device).eval()


def output_of(model: Any) -> Any:
    """The module of a classifier that is its head; None where it has none of a name that PEFT saves."""
    return getattr(model, "classifier", None) or getattr(model, "score", None)


def head_base_of(base: Base) -> HeadBase:
    """A decoder as tasks with a head are tuned over it, beside those that generate. Raises `InvalidRequest` for an
    encoder-decoder."""
    family = family_of(base.model.config)
    if refusal := why_not("LORA", "SEQ_CLS", family):
        raise InvalidRequest(f"{base.label}: {refusal}.", param="task_type")
    within = f"{base.model.base_model_prefix}."
    return HeadBase("", base.label, None, base.tokenizer, base.model.base_model, False, family, within)


def load_head_base(recipe: OverBase, device: str = "auto", cache: Path | None = None) -> HeadBase:
    """Raises `InvalidRequest` where the recipe's base is no encoder that takes a prefix."""
    source = source_of(recipe, cache)
    config = config_of(source)
    family = family_of(config)
    if family != "encoder" or not takes_prefix(config.model_type):
        instead = ""
        if family != "encoder":
            instead = (
                " On this one tune prompt_tuning, p_tuning, prefix_tuning, lora or lora+prefix_tuning: it says labels."
            )
        raise InvalidRequest(
            f"{recipe.base} is of type {config.model_type}, and p_tuning_v2 is tuned on encoders that take a prefix: "
            f"BERT, RoBERTa, XLM-R, ELECTRA and models of their build.{instead}",
            param="base",
        )
    return open_head_base(source, label_of(recipe), device)


def open_head_base(source: str, label: str, device: str = "auto") -> HeadBase:
    """The encoder in a folder, or of a hub id."""
    folder = Path(source)
    model, missing = _quietly(AutoModel, source)
    return HeadBase(
        source,
        label,
        base_fingerprint(folder) if folder.is_dir() else None,
        AutoTokenizer.from_pretrained(source),
        model.to(device_of(device)).eval().requires_grad_(False),
        has_pooler=getattr(model, "pooler", None) is not None and not any("pooler" in name for name in missing),
    )


def as_head_base(model: Any, tokenizer: Any, label: str) -> HeadBase:
    """A loaded encoder and its tokenizer: frozen, in evaluation mode, where it is. Its pooler, if it has one, is taken
    for trained."""
    encoder = model.base_model.eval().requires_grad_(False)
    return HeadBase("", label, None, tokenizer, encoder, getattr(encoder, "pooler", None) is not None)


def _quietly(kind: Any, source: str, **options: Any) -> tuple[Any, list[str]]:
    """Loaded in float32, without the warning that a head is new; and the names of what is new."""
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(source, dtype=torch.float32, output_loading_info=True, **options)
    finally:
        transformers_logging.set_verbosity(said)
    return model, list(info["missing_keys"])
