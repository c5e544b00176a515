"""Examples as token ids, and batches of them as tensors.

A row's ids come from `lay_out`, the function that serving lays out by, so what is trained is what is served. Batches
are padded on the left with explicit positions, so that every answer ends in the last column, and a row's values do not
depend on its neighbours' lengths where `Base.batches` has put them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from softmux.formats.layout import Encoder, Layout, lay_out
from softmux.formats.template import Template, Text
from softmux.tuning.data.examples import Example

IGNORE = -100


@dataclass(frozen=True, slots=True)
class Row:
    """`ids` is the input (learned token i is `-1 - i`), `answer` the tokens to generate after it. `taught`
    `[len(answer), hidden]`: what a teacher's last layer gave the output head before each of them; None where the words
    themselves are learned."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]
    taught: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    @property
    def length(self) -> int:
        return len(self.ids) + len(self.answer)

    @property
    def prompt_tokens(self) -> int:
        """Real tokens of the input, as a reply's `usage` counts them."""
        return sum(token >= 0 for token in self.ids)


@dataclass(frozen=True, slots=True)
class HeadRow:
    """A row of a task with a head. `ids` is the text's tokens, special ones included, behind learned vectors where
    there are any (vector i is `-1 - i`). `targets` is its label's index, or one for each of the text's tokens (`IGNORE`
    where it has none); the first is said `at` that one of `ids`. `words`: the first of the text's tokens of each
    labelled word."""

    ids: tuple[int, ...]
    targets: tuple[int, ...]
    words: tuple[int, ...] = ()
    at: int = 0

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def text(self) -> tuple[int, ...]:
        """The text's tokens."""
        return tuple(token for token in self.ids if token >= 0)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the input: the text's."""
        return len(self.text)

    def meant(self, head: str) -> tuple[int, ...]:
        """What a head that is measured should say: the row's label, or one for each labelled word."""
        return self.targets if head == "sequence" else tuple(self.targets[word] for word in self.words)

    @property
    def answer(self) -> tuple[int, ...]:
        return self.targets


TaskRow = Row | HeadRow


def encode(example: Example, layout: Layout, encoder: Encoder, vocab_size: int, end_id: int | None) -> Row:
    """The row of an example. The answer is encoded on its own, as a model generates it, then `end_id` unless None."""
    ids = lay_out(layout, encoder, vocab_size=vocab_size, prompt=example.text)
    answer = tuple(encoder.encode(example.answer, add_special_tokens=False))
    return Row(ids, answer if end_id is None else (*answer, end_id))


def bare_text(template: Template | None, text: str) -> str:
    """The words an input holds beside its learned tokens."""
    if template is None:
        return text
    runs = template.runs(dict.fromkeys(template.slots, text))
    return "".join(run.text for run in runs if isinstance(run, Text))


@dataclass(frozen=True, slots=True)
class Batch:
    """`tokens` and `virtual` `[rows, width]`: real ids (0 elsewhere), and indices of learned tokens (-1 elsewhere).

    `mask` `[rows, prefix + width]`, `positions` `[rows, width]` counted from `prefix`, the number of tokens whose keys
    and values come before the input; `targets` `[rows, answer width]`, `IGNORE` where a row's answer is shorter.
    """

    tokens: torch.Tensor
    virtual: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    targets: torch.Tensor
    prefix: int


def collate(rows: Sequence[Row], *, prefix: int, device: torch.device) -> Batch:
    """Rows as one batch. The `prefix` leading ids of a row are keys and values, not input, and are taken off."""
    inputs = [[*row.ids[prefix:], *row.answer] for row in rows]
    width = max(map(len, inputs))
    answer_width = max(len(row.answer) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in inputs])
    real = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in inputs])
    targets = torch.tensor([[IGNORE] * (answer_width - len(row.answer)) + list(row.answer) for row in rows])
    mask = torch.cat([torch.ones(len(rows), prefix, dtype=torch.bool), real], dim=1)
    return Batch(
        tokens=ids.clamp(min=0).to(device),
        virtual=torch.where(ids < 0, -1 - ids, -1).to(device),
        mask=mask.long().to(device),
        positions=(real.long().cumsum(1) - 1).clamp(min=0).add(prefix).to(device),
        targets=targets.to(device),
        prefix=prefix,
    )


def collate_apart(rows: Sequence[Row], *, prefix: int, device: torch.device) -> Batch:
    """As `collate`, of inputs whose answers are another stack's to say: `tokens` are the inputs alone, and everything
    is padded on the right. `mask` and `positions` know nothing of the prefix, which is not theirs."""
    inputs = [row.ids[prefix:] for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in inputs], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in inputs])[:, None]
    answers = [torch.tensor(row.answer, dtype=torch.int64) for row in rows]
    targets = torch.nn.utils.rnn.pad_sequence(answers, batch_first=True, padding_value=IGNORE)
    return Batch(
        tokens=ids.clamp(min=0).to(device),
        virtual=torch.where(ids < 0, -1 - ids, -1).to(device),
        mask=mask.long().to(device),
        positions=torch.arange(ids.shape[1]).expand_as(ids).to(device),
        targets=targets.to(device),
        prefix=prefix,
    )
