"""What a tuned task is worth on the held-out rows: greedy generation, beside the bare model on the same words; or the
labels of a head."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from softmux.evaluation.scores import METRIC_NAMES, fields, score_text
from softmux.formats.layout import Layout
from softmux.tuning.base import Base
from softmux.tuning.data import Example
from softmux.tuning.recipe import Evaluate, Metric
from softmux.tuning.rows import Batch, Row, bare_text, collate, encode

BATCH = 64

Pick = Callable[[torch.Tensor], torch.Tensor]
"""Each row's next token `[rows]` of its logits `[rows, vocabulary]`."""


class Speaker(Protocol):
    """What makes a base's inputs of rows: what a task has learned, or a teacher."""

    def collate(self, rows: Sequence[Row]) -> Batch: ...

    def inputs(self, batch: Batch) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Figures:
    """Named shares from 0 to 1 over `rows` held-out rows; the first is the recipe's metric. `parameters`: how many
    numbers were trained for it, where that is compared."""

    rows: int
    values: dict[str, float]
    parameters: int | None = None


def evaluate(
    base: Base, learned: Speaker | None, test: Sequence[Example], how: Evaluate, layout: Layout, labels: Sequence[str]
) -> Figures:
    """The figures of `learned`; for None, of the bare model on the same words: `layout`'s text without learned tokens.

    `labels` are the answers of a task that has a few fixed ones; their likelihoods give `label accuracy`.
    """
    if learned is None:
        words = [Example(bare_text(layout.template, example.text), example.answer) for example in test]
        rows = [encode(example, Layout(), base.encoder, base.vocab_size, None) for example in words]
    else:
        rows = [encode(example, layout, base.encoder, base.vocab_size, None) for example in test]
    texts, likeliest_of = _answered(base, learned, rows, how.max_tokens, labels)
    values = score(how.metric, texts, [example.answer for example in test])
    if labels:
        values["label accuracy"] = _share(a == b.answer for a, b in zip(likeliest_of, test, strict=True))
    return Figures(len(test), values)


def score_labels(head: str, found: Sequence[Sequence[int]], meant: Sequence[Sequence[int]]) -> dict[str, float]:
    """Predicted labels against those expected: one for each row, or one for each word of it.

    Each word has one label and gets one, so that F1 averaged over all words (micro) is the share that is right.
    """
    pairs = [pair for a, b in zip(found, meant, strict=True) for pair in zip(a, b, strict=True)]
    right = _share(a == b for a, b in pairs)
    if head == "sequence":
        return {"accuracy": right}
    hits, said, due = Counter(a for a, b in pairs if a == b), Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    each = [2 * hits[label] / (said[label] + due[label]) for label in due]
    rows = [list(a) == list(b) for a, b in zip(found, meant, strict=True)]
    return {"token F1": right, "macro F1": sum(each) / len(each), "whole rows": _share(rows)}


def score(metric: Metric, texts: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Generated texts against the answers expected."""
    pairs = list(zip(texts, answers, strict=True))
    scores = [score_text(metric, text, answer) for text, answer in pairs]
    total = sum(one.out_of for one in scores)
    values = {METRIC_NAMES[metric]: sum(one.of for one in scores) / total if total else 0.0}
    if metric == "json_fields":
        values["valid JSON"] = _share(fields(text) is not None for text in texts)
    return values | {"exact": _share(text == answer for text, answer in pairs)}


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The greedy `Pick`."""
    return logits.argmax(-1)


def generate(base: Base, learned: Speaker | None, rows: Sequence[Row], max_tokens: int) -> list[str]:
    """Greedy texts after each row's input, without the end token, at most `max_tokens` tokens each."""
    return [base.text(ids) for ids in continued(base, learned, rows, max_tokens)]


@torch.no_grad()
def continued(
    base: Base, learned: Speaker | None, rows: Sequence[Row], max_tokens: int, pick: Pick = likeliest
) -> list[tuple[int, ...]]:
    """The tokens after each row's input, the end token included where it came within `max_tokens`."""
    found: list[tuple[int, ...]] = [()] * len(rows)
    for chosen, read in _by_length(base, learned, rows):
        for i, ids in zip(chosen, read.continued(max_tokens, pick), strict=True):
            found[i] = ids
    return found


@torch.no_grad()
def _answered(
    base: Base, learned: Speaker | None, rows: Sequence[Row], max_tokens: int, labels: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Each row's greedy text, and its likeliest label where there are labels: inputs are read once for both."""
    texts, likeliest_of = [""] * len(rows), [""] * len(rows)
    answers = [tuple(base.encoder.encode(label, add_special_tokens=False)) for label in labels]
    for chosen, read in _by_length(base, learned, rows):
        if answers:
            for i, best in zip(chosen, read.scores(answers).argmax(1).tolist(), strict=True):
                likeliest_of[i] = labels[best]
        for i, ids in zip(chosen, read.continued(max_tokens, likeliest), strict=True):
            texts[i] = base.text(ids)
    return texts, likeliest_of


def _by_length(base: Base, learned: Speaker | None, rows: Sequence[Row]) -> Iterator[tuple[list[int], _Read]]:
    """The rows in batches of like length, read: their indices, and what they are gone on from."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        inputs = inputs_of(base, learned, [Row(rows[i].ids, ()) for i in chosen])
        out = base.model(**inputs, use_cache=True, logits_to_keep=1)
        place = inputs["position_ids"][:, -1:] + 1
        yield chosen, _Read(base, out.logits[:, -1], out.past_key_values, inputs["attention_mask"], place)


@dataclass(frozen=True, slots=True)
class _Read:
    """Inputs that the base has read: `logits [rows, vocabulary]` of what comes next, the `past` keys and values, their
    `mask [rows, keys]`, and the next position `place [rows, 1]`."""

    base: Base
    logits: torch.Tensor
    past: Any
    mask: torch.Tensor
    place: torch.Tensor

    def scores(self, answers: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """`[rows, answers]`: each answer's log-likelihood next. What was read can be gone on from afterwards."""
        first = self.logits.log_softmax(-1)
        found = [first[:, answer[0]] for answer in answers]
        for number, answer in enumerate(answers):
            if not answer[1:]:
                continue
            tokens = torch.tensor(answer, device=self.mask.device).expand(len(self.mask), -1)
            out = self.base.model(
                input_ids=tokens[:, :-1],
                attention_mask=_longer(self.mask, len(answer) - 1),
                position_ids=self.place + torch.arange(len(answer) - 1, device=self.mask.device),
                past_key_values=copy.deepcopy(self.past),
                use_cache=True,
            )
            found[number] += out.logits.log_softmax(-1).gather(2, tokens[:, 1:, None])[:, :, 0].sum(1)
        return torch.stack(found, 1)

    def continued(self, max_tokens: int, pick: Pick) -> list[tuple[int, ...]]:
        """The tokens that come next, the end token included where it came within `max_tokens`."""
        base, mask, place, logits = self.base, self.mask, self.place, self.logits
        stops = torch.tensor(base.eos_ids, device=base.device)
        done = torch.zeros(len(mask), dtype=torch.bool, device=base.device)
        steps: list[torch.Tensor] = []
        while True:
            token = torch.where(done, stops[0], pick(logits))
            done |= torch.isin(token, stops)
            steps.append(token)
            if len(steps) == max_tokens or bool(done.all()):
                break
            mask = _longer(mask, 1)
            logits = base.model(
                input_ids=token[:, None],
                attention_mask=mask,
                position_ids=place,
                past_key_values=self.past,
                use_cache=True,
            ).logits[:, -1]
            place = place + 1
        return [
            tuple(row[: next((i + 1 for i, token in enumerate(row) if token in base.eos_ids), len(row))])
            for row in torch.stack(steps, dim=1).tolist()
        ]


def _longer(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    return torch.cat([mask, mask.new_ones(len(mask), tokens)], dim=1)


def inputs_of(base: Base, learned: Speaker | None, rows: Sequence[Row]) -> dict[str, Any]:
    """What the base is called with for these rows; for None, the bare model."""
    if learned is not None:
        return learned.inputs(learned.collate(rows))
    batch = collate(rows, prefix=0, device=base.device)
    return {"input_ids": batch.tokens, "attention_mask": batch.mask, "position_ids": batch.positions}


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)
