"""Tasks with a head, on an encoder: their rows, and what is learned (P-tuning v2, or to compare the whole encoder).

A row's ids come from `lay_out`, as everywhere. PEFT's own forward pass puts the prefix before them, so rows are padded
on the right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers import logging as transformers_logging

from softmux.demo import demo_model
from softmux.engine.bases import family_of
from softmux.engine.fingerprint import base_fingerprint
from softmux.errors import InvalidRequest
from softmux.formats.layout import TransformersEncoder, lay_out
from softmux.formats.peft_types import takes_prefix
from softmux.tuning.base import device_of, label_of
from softmux.tuning.data import BadData, Example
from softmux.tuning.recipe import PTuningV2, Recipe
from softmux.tuning.rows import IGNORE

try:
    from peft import PrefixTuningConfig, get_peft_model
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error

_CLASSES: dict[str, Any] = {"sequence": AutoModelForSequenceClassification, "token": AutoModelForTokenClassification}
_TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}


@dataclass(frozen=True, slots=True)
class HeadBase:
    """The frozen encoder a task with a head is tuned over. `label` is its name, `fingerprint` what servers know it by
    (None for a hub id)."""

    source: str
    label: str
    fingerprint: str | None
    tokenizer: Any
    device: torch.device

    def encoder(self) -> Any:
        """A fresh copy of the encoder without a head, frozen."""
        return _quietly(AutoModel, self.source).to(self.device).eval().requires_grad_(False)

    def classifier(self, head: str, labels: int) -> Any:
        """A fresh copy under a fresh head, in evaluation mode. The head comes from torch's global generator."""
        return _quietly(_CLASSES[head], self.source, num_labels=labels).to(self.device).eval()


def load_head_base(recipe: Recipe, device: str = "auto", cache: Path | None = None) -> HeadBase:
    """Raises `InvalidRequest` where the recipe's base is no encoder that takes a prefix."""
    source = str(demo_model(cache, recipe.demo)) if recipe.demo else recipe.base
    folder = Path(source)
    config = AutoConfig.from_pretrained(source)
    if family_of(config) != "encoder" or not takes_prefix(config.model_type):
        raise InvalidRequest(
            f"{recipe.base} is of type {config.model_type}, and p_tuning_v2 is tuned on encoders that take a prefix: "
            "BERT, RoBERTa, XLM-R, ELECTRA and models of their build.",
            param="base",
        )
    return HeadBase(
        source,
        label_of(recipe),
        base_fingerprint(folder) if folder.is_dir() else None,
        AutoTokenizer.from_pretrained(source),
        device_of(device),
    )


@dataclass(frozen=True, slots=True)
class HeadRow:
    """`ids` is the text's tokens, special ones included. `targets` is its label's index, or one for each token
    (`IGNORE` where it has none); `words` the first token of each labelled word."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    words: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def answer(self) -> tuple[int, ...]:
        return self.targets


def labels_of(recipe: Recipe, examples: Sequence[Example]) -> list[str]:
    """The labels that the examples have, in the recipe's order. Raises `InvalidRequest` where it names others."""
    assert isinstance(recipe.method, PTuningV2)
    if recipe.method.head == "token":
        found = sorted({span.label for example in examples for span in example.spans})
        if not found:
            raise InvalidRequest(f"The source {recipe.data.source} labels no words.", param="data.source")
    else:
        found = sorted({example.answer.strip() for example in examples})
    if recipe.labels is None:
        return found
    if sorted(recipe.labels) != found:
        raise InvalidRequest(
            f"The recipe's labels are {', '.join(recipe.labels)}, and the data's are {', '.join(found)}.",
            param="labels",
        )
    return list(recipe.labels)


def encode_row(example: Example, base: HeadBase, head: str, labels: Sequence[str]) -> HeadRow:
    """The row of an example. Of a word, every token is labelled, its punctuation's included.

    Raises `BadData` where a word has no token of its own.
    """
    ids = lay_out(None, TransformersEncoder(base.tokenizer), vocab_size=len(base.tokenizer), prompt=example.text)
    if head == "sequence":
        return HeadRow(ids, (labels.index(example.answer.strip()),))
    offsets = base.tokenizer(example.text, return_offsets_mapping=True)["offset_mapping"]
    targets = [IGNORE] * len(ids)
    words = []
    for span in example.spans:
        own = [i for i, (start, end) in enumerate(offsets) if span.start <= start < end <= span.end]
        if not own:
            raise BadData(
                f"no token is the word {example.text[span.start : span.end]!r}", file=example.file, row=example.row
            )
        words.append(own[0])
        for i in own:
            targets[i] = labels.index(span.label)
    return HeadRow(ids, tuple(targets), tuple(words))


@dataclass(frozen=True, slots=True)
class HeadLearned:
    """`model` gives a head's logits: PEFT's over a frozen encoder, or a module that is trained whole."""

    base: HeadBase
    head: str
    model: Any

    @property
    def peft(self) -> Any:
        return self.model

    @property
    def lora(self) -> Any:
        return None

    @property
    def device(self) -> torch.device:
        return self.base.device

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def train(self, on: bool) -> None:
        self.model.train(on)

    def losses(self, rows: Sequence[HeadRow]) -> torch.Tensor:
        logits = self.logits(rows).float()
        targets = [torch.tensor(row.targets, device=self.device) for row in rows]
        if self.head == "sequence":
            return cross_entropy(logits, torch.cat(targets), reduction="none")
        padded = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORE)
        kept = padded != IGNORE
        return cross_entropy(logits[kept], padded[kept], reduction="none")

    def logits(self, rows: Sequence[HeadRow]) -> torch.Tensor:
        """`[rows, labels]`, or `[rows, width, labels]` of tokens."""
        ids, mask = padded(rows, self.device)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits if self.head == "sequence" else logits[:, -ids.shape[1] :]

    def predict(self, rows: Sequence[HeadRow]) -> list[list[int]]:
        """The likeliest label of each row, or of each of its words by the word's first token."""
        found: list[list[int]] = [[]] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: rows[i].length)
        with torch.no_grad():
            for start in range(0, len(order), 64):
                chosen = order[start : start + 64]
                likeliest = self.logits([rows[i] for i in chosen]).argmax(-1).tolist()
                for i, best in zip(chosen, likeliest, strict=True):
                    found[i] = [best] if self.head == "sequence" else [best[word] for word in rows[i].words]
        return found


def padded(rows: Sequence[HeadRow], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) `[rows, width]`, padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.ids) for row in rows], batch_first=True)
    lengths = torch.tensor([row.length for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.long().to(device)


def begin_prefix(recipe: PTuningV2, base: HeadBase, labels: int) -> HeadLearned:
    """A fresh prefix under a fresh head, as PEFT builds both."""
    config = PrefixTuningConfig(
        task_type=_TASK_TYPES[recipe.head],
        num_virtual_tokens=recipe.virtual_tokens,
        prefix_projection=recipe.projection,
        encoder_hidden_size=recipe.encoder_hidden_size,
        modules_to_save=["classifier", "pooler"] if recipe.pooler else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base.classifier(recipe.head, labels), config)
    return HeadLearned(base, recipe.head, model)


def begin_full(base: HeadBase, head: str, labels: int) -> HeadLearned:
    """The whole encoder, to be trained, under a fresh head."""
    return HeadLearned(base, head, base.classifier(head, labels).requires_grad_(True))


def _quietly(kind: Any, source: str, **options: Any) -> Any:
    """Loaded in float32, without the warning that a head is new."""
    said = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return kind.from_pretrained(source, dtype=torch.float32, **options)
    finally:
        transformers_logging.set_verbosity(said)
