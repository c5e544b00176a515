"""What a task with a head learns: P-tuning v2, or any other method, as PEFT builds and saves it under a head; or, to
compare, the whole encoder.

It is trained packed, among other tasks (`many.py`); it is measured by PEFT's own forward pass, which puts the prefix,
or the vectors, before rows that are padded on the right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from softmux.errors import InvalidRequest
from softmux.tuning.bases.head_base import HeadBase, output_of
from softmux.tuning.bases.head_rows import padded
from softmux.tuning.data.rows import IGNORE, HeadRow
from softmux.tuning.frozen.stacked_heads import Head
from softmux.tuning.learned.headed import Headed, headed
from softmux.tuning.learned.peft_configs import lora_config, soft_config
from softmux.tuning.learned.peft_parts import (
    ADAPTER,
    low_rank_layers,
    low_rank_model,
    low_rank_values,
    peft_model,
    prompt_encoder,
    put_parts,
)
from softmux.tuning.recipes.recipe import Lora, PrefixTuning, PromptTuning, PTuning, PTuningV2
from softmux.tuning.training.cohort import Start

try:
    from peft.utils import ModulesToSaveWrapper
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("Tuning is built on PEFT: pip install 'softmux[tune]'.", name=error.name) from error

_TASK_TYPES = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}


@dataclass(frozen=True, slots=True)
class HeadLearned:
    """`model` gives a head's logits: PEFT's over a frozen base, or a module that is trained whole."""

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

    @property
    def soft(self) -> torch.nn.Module | None:
        """The prompt encoder; None for a LoRA."""
        return prompt_encoder(self.peft)

    @property
    def is_prefix(self) -> bool:
        return bool(self.peft.peft_config[ADAPTER].peft_type == "PREFIX_TUNING")

    @property
    def reads_last(self) -> bool:
        """Whether a sequence is read at its last token, not at its first: it sees all others."""
        return self.base.family == "decoder"

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for parameter in self.model.parameters() if parameter.requires_grad)

    def train(self, on: bool) -> None:
        self.model.train(on)

    def losses(self, rows: Sequence[HeadRow]) -> torch.Tensor:
        found = []
        for few in [[row] for row in rows] if self.reads_last else [rows]:
            logits = self.logits(few).float()
            targets = [torch.tensor(row.targets, device=self.device) for row in few]
            if self.head == "sequence":
                found.append(cross_entropy(logits, torch.cat(targets), reduction="none"))
                continue
            padded = torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=IGNORE)
            kept = padded != IGNORE
            found.append(cross_entropy(logits[kept], padded[kept], reduction="none"))
        return torch.cat(found)

    def logits(self, rows: Sequence[HeadRow]) -> torch.Tensor:
        """`[rows, labels]`, or `[rows, width, labels]` of tokens. Rows of a decoder are of one length: PEFT reads the
        last of what lies there."""
        ids, mask = padded(rows, self.device)
        logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        return logits if self.head == "sequence" else logits[:, -ids.shape[1] :]

    def predict(self, rows: Sequence[HeadRow]) -> list[list[int]]:
        """The likeliest label of each row, or of each of its words by the word's first token."""
        found: list[list[int]] = [[]] * len(rows)
        with torch.no_grad():
            for chosen in self._alike(rows):
                likeliest = self.logits([rows[i] for i in chosen]).argmax(-1).tolist()
                for i, best in zip(chosen, likeliest, strict=True):
                    found[i] = [best] if self.head == "sequence" else [best[word] for word in rows[i].words]
        return found

    def _alike(self, rows: Sequence[HeadRow]) -> Iterator[list[int]]:
        """Which rows go through it together: of like length, of a decoder of one."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].prompt_tokens)
        groups = [order]
        if self.reads_last:
            groups = [list(same) for _, same in groupby(order, key=lambda i: rows[i].prompt_tokens)]
        for group in groups:
            yield from (group[start : start + 64] for start in range(0, len(group), 64))


def begin_prefix(recipe: PTuningV2, base: HeadBase, labels: int) -> HeadLearned:
    """`begin_head` of a recipe's method."""
    return begin_head(headed(recipe), base, labels)


def begin_head(recipe: Headed, base: HeadBase, labels: int) -> HeadLearned:
    """Fresh numbers to learn under a fresh head, as PEFT builds both, over `base`'s own modules. Random parts come from
    torch's global generator: seed it first. A LoRA's layers are within `base.model` until `release_head`.

    Raises `InvalidRequest` where a sequence's head would stand on a pooler of random numbers, and for what is not
    there to be trained.
    """
    method = recipe.method
    model = base.classifier(recipe.head, labels)
    pooler = getattr(getattr(model, model.base_model_prefix), "pooler", None)
    if pooler is not None and not base.has_pooler and not recipe.pooler:
        raise InvalidRequest(
            f"{base.label} has no pooler of its own, which is what a sequence's head stands on: set pooler = true, so "
            "that it is trained.",
            param="method.pooler",
        )
    if recipe.pooler and pooler is None:
        raise InvalidRequest(
            f"Nothing stands between the last layer of {base.label} and its {recipe.head} head, so there is no pooler "
            "to be trained: leave pooler out.",
            param="method.pooler",
        )
    task_type = _TASK_TYPES[recipe.head]
    saved = ["classifier", "pooler"] if recipe.pooler else None
    if isinstance(method, Lora):
        peft = low_rank_model(model, lora_config(method, task_type, saved), base.model, base.label)
    else:
        _check_vectors(method, base)
        peft = peft_model(model, soft_config(method, task_type, base.tokenizer, saved=saved))
    learned = HeadLearned(base, recipe.head, peft.to(base.device))
    learned.train(False)
    return learned


@contextmanager
def lent_head(learned: HeadLearned) -> Iterator[HeadLearned]:
    """What `begin_head` has put into a base, until the block ends, however it does: the base is then as it was."""
    try:
        yield learned
    finally:
        release_head(learned)


def release_head(learned: HeadLearned) -> None:
    """Gives the base back as it was: without the LoRA's layers, if it has any."""
    if learned.soft is None:
        learned.peft.unload()
    learned.base.model.requires_grad_(False)


def _check_vectors(method: PromptTuning | PTuning | PrefixTuning, base: HeadBase) -> None:
    """Raises `InvalidRequest` where the base's embeddings are of another width than its layers, for which PEFT makes
    its vectors."""
    wide, hidden = base.model.get_input_embeddings().weight.shape[1], base.model.config.get_text_config().hidden_size
    if not isinstance(method, PrefixTuning) and wide != hidden:
        raise InvalidRequest(
            f"{base.label}'s embeddings are {wide} wide and its layers {hidden}, and PEFT's vectors are as wide as its "
            "layers: train a prefix, or a LoRA.",
            param="method",
        )


def begin_full(base: HeadBase, head: str, labels: int) -> HeadLearned:
    """The whole encoder, to be trained, under a fresh head."""
    return HeadLearned(base, head, base.whole(head, labels).requires_grad_(True))


def head_start(learned: HeadLearned, virtual_tokens: int) -> Start:
    """Its numbers as they are, for `many.Trainer`. Raises `InvalidRequest` where the model's head is of a build that
    softmux does not know."""
    head, model = _head(learned), learned.peft.get_base_model()
    ids = torch.arange(3, 6, device=learned.device)[None]
    read = slice(None) if learned.head == "token" else slice(-1, None) if learned.reads_last else slice(1)
    with torch.no_grad():
        states = getattr(model, model.base_model_prefix)(input_ids=ids)[0][0]
        own, expected = head(states[read]), model(input_ids=ids).logits.view(-1, head.labels)
    if own.shape != expected.shape or not torch.allclose(own, expected, rtol=1e-4, atol=1e-4):
        raise InvalidRequest(f"{type(model).__name__}'s head is of a build that softmux can't tune.", param="base")
    pairs, scaling = low_rank_values(_layers(learned))
    return Start(learned.soft, virtual_tokens, learned.is_prefix, pairs, scaling, head=head)


@torch.no_grad()
def put_head(learned: HeadLearned, values: Mapping[str, torch.Tensor]) -> None:
    """Writes what was learned, by `Start`'s names, into PEFT's modules."""
    put_parts(learned.soft, _layers(learned), values)
    for name, value in _head(learned).values():
        value.copy_(values[f"head.{name}"])


def _layers(learned: HeadLearned) -> Iterator[tuple[str, Any]]:
    """A LoRA's, by the names that their modules have in the module that is run."""
    if learned.soft is None:
        for name, layer in low_rank_layers(learned.base.model):
            yield f"{learned.base.within}{name}", layer


def _head(learned: HeadLearned) -> Head:
    model = learned.peft.get_base_model()
    pooler = getattr(getattr(model, model.base_model_prefix), "pooler", None) if learned.head == "sequence" else None
    learns_pooler = isinstance(pooler, ModulesToSaveWrapper)
    return Head(
        _learned(output_of(model)),
        None if pooler is None else _learned(pooler),
        first=learned.head == "sequence" and not learned.reads_last,
        learns_pooler=learns_pooler,
    )


def _learned(module: Any) -> torch.nn.Module:
    """What PEFT has put in a module's place, or the module itself."""
    own: torch.nn.Module = module.modules_to_save[ADAPTER] if isinstance(module, ModulesToSaveWrapper) else module
    return own
