"""What a task with a head learns on an encoder: P-tuning v2 as PEFT builds and saves it, or, to compare, the whole
encoder.

It is trained packed, among other tasks (`many.py`); it is measured by PEFT's own forward pass, which puts the prefix
before rows that are padded on the right.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from softmux.errors import InvalidRequest
from softmux.tuning.cohort import Start
from softmux.tuning.head_base import HeadBase
from softmux.tuning.head_rows import padded
from softmux.tuning.recipe import PTuningV2
from softmux.tuning.rows import IGNORE, HeadRow
from softmux.tuning.stacked_heads import Head

try:
    from peft import PrefixTuningConfig, get_peft_model
    from peft.utils import ModulesToSaveWrapper
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error

_ADAPTER = "default"
_TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}


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


def begin_prefix(recipe: PTuningV2, base: HeadBase, labels: int) -> HeadLearned:
    """A fresh prefix under a fresh head, as PEFT builds both, over `base`'s own encoder. Random parts come from torch's
    global generator: seed it first.

    Raises `InvalidRequest` where a sequence's head would stand on a pooler of random numbers.
    """
    model = base.classifier(recipe.head, labels)
    inner = getattr(model, model.base_model_prefix)
    if getattr(inner, "pooler", None) is not None and not base.has_pooler and not recipe.pooler:
        raise InvalidRequest(
            f"{base.label} has no pooler of its own, which is what a sequence's head stands on: set pooler = true, so "
            "that it is trained.",
            param="method.pooler",
        )
    config = PrefixTuningConfig(
        task_type=_TASK_TYPES[recipe.head],
        num_virtual_tokens=recipe.virtual_tokens,
        prefix_projection=recipe.projection,
        encoder_hidden_size=recipe.encoder_hidden_size,
        modules_to_save=["classifier", "pooler"] if recipe.pooler else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learned = HeadLearned(base, recipe.head, get_peft_model(model, config).to(base.device))
    learned.train(False)
    return learned


def begin_full(base: HeadBase, head: str, labels: int) -> HeadLearned:
    """The whole encoder, to be trained, under a fresh head."""
    return HeadLearned(base, head, base.whole(head, labels).requires_grad_(True))


def head_start(learned: HeadLearned, virtual_tokens: int) -> Start:
    """Its numbers as they are, for `many.Trainer`. Raises `InvalidRequest` where the model's head is of a build that
    softmux does not know."""
    soft, head = learned.peft.prompt_encoder[_ADAPTER], _head(learned)
    ids = torch.arange(3, 6, device=learned.device)[None]
    model = learned.peft.base_model
    with torch.no_grad():
        states = getattr(model, model.base_model_prefix)(input_ids=ids)[0][0]
        own, expected = head(states[: 1 if head.first else None]), model(input_ids=ids).logits.view(-1, head.labels)
    if not torch.allclose(own, expected, rtol=1e-4, atol=1e-4):
        raise InvalidRequest(f"{type(model).__name__}'s head is of a build that softmux can't tune.", param="base")
    return Start(soft, virtual_tokens, True, {}, head=head)


@torch.no_grad()
def put_head(learned: HeadLearned, values: Mapping[str, torch.Tensor]) -> None:
    """Writes what was learned, by `Start`'s names, into PEFT's modules."""
    for name, parameter in learned.peft.prompt_encoder[_ADAPTER].named_parameters():
        parameter.copy_(values[f"soft.{name}"])
    for name, parameter in _head(learned).values():
        parameter.copy_(values[f"head.{name}"])


def _head(learned: HeadLearned) -> Head:
    model = learned.peft.base_model
    pooler = getattr(getattr(model, model.base_model_prefix), "pooler", None) if learned.head == "sequence" else None
    learns_pooler = isinstance(pooler, ModulesToSaveWrapper)
    return Head(
        _learned(model.classifier),
        None if pooler is None else _learned(pooler),
        first=learned.head == "sequence",
        learns_pooler=learns_pooler,
    )


def _learned(module: Any) -> torch.nn.Module:
    """What PEFT has put in a module's place, or the module itself."""
    own: torch.nn.Module = module.modules_to_save[_ADAPTER] if isinstance(module, ModulesToSaveWrapper) else module
    return own
