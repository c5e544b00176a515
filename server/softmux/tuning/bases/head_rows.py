"""Rows of tasks with a head: a row's ids come from `lay_out`, as everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from softmux.errors import InvalidRequest
from softmux.formats.layout import TransformersEncoder, lay_out, virtual_ids
from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.data.examples import BadData, Example
from softmux.tuning.data.rows import IGNORE, HeadRow
from softmux.tuning.recipes.recipe import PTuningV2, Recipe


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


def encode_row(example: Example, base: HeadBase, head: str, labels: Sequence[str], vectors: int = 0) -> HeadRow:
    """The row of an example, behind so many learned vectors. Of a word, every token is labelled, its punctuation's
    included. A sequence's label is said at the first token of all, a decoder's at the last.

    Raises `BadData` where a word has no token of its own.
    """
    ids = lay_out(None, TransformersEncoder(base.tokenizer), vocab_size=len(base.tokenizer), prompt=example.text)
    placed = (*virtual_ids(vectors), *ids)
    if head == "sequence":
        at = len(placed) - 1 if base.family == "decoder" else 0
        return HeadRow(placed, (labels.index(example.answer.strip()),), at=at)
    offsets = [
        (end - len(example.text[start:end].lstrip()), end)  # many tokens begin with the space before their word
        for start, end in base.tokenizer(example.text, return_offsets_mapping=True)["offset_mapping"]
    ]
    targets = [IGNORE] * len(ids)
    words = []
    for span in example.spans:
        own = [i for i, (start, end) in enumerate(offsets) if span.start <= start < end <= span.end]
        if not own:
            raise BadData(
                f"no token lies within the labelled {example.text[span.start : span.end]!r}; give the characters of "
                "whole words, or leave the label out",
                file=example.file,
                row=example.row,
            )
        words.append(own[0])
        for i in own:
            targets[i] = labels.index(span.label)
    return HeadRow(placed, tuple(targets), tuple(words), at=vectors)


def labelled(name: str, rows: Sequence[HeadRow], file: str) -> list[HeadRow]:
    """Those of the rows that have a label. Raises `BadData` where none has."""
    found = [row for row in rows if any(target != IGNORE for target in row.targets)]
    if not found:
        raise BadData(f"no {name} row has a labelled word; give more rows, or label more of their words", file=file)
    return found


def padded(rows: Sequence[HeadRow], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) `[rows, width]` of the texts, padded on the right."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row.text) for row in rows], batch_first=True)
    lengths = torch.tensor([row.prompt_tokens for row in rows])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), mask.long().to(device)
