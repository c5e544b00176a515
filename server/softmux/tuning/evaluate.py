"""What a tuned task is worth on the held-out rows: greedy generation, beside the bare model on the same words; or the
labels of a head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from softmux.evaluation.scores import METRIC_NAMES, fields, score_text
from softmux.formats.layout import Layout
from softmux.tuning.bases.base import Base
from softmux.tuning.bases.reading import Pick, Reading
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import IGNORE, Row, bare_text, encode
from softmux.tuning.frozen.decoder import heard
from softmux.tuning.recipes.recipe import Evaluate, Metric
from softmux.tuning.voices.shared_prompt import shared_prompt
from softmux.tuning.voices.speaker import Bare, Speaker

BATCH = 64

See = Callable[[int], None]
"""Told how many more rows are done."""


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
    base: Base,
    learned: Speaker | None,
    rows: Sequence[Row],
    max_tokens: int,
    pick: Pick = likeliest,
    see: See | None = None,
) -> list[tuple[int, ...]]:
    """The tokens after each row's input, the end token included where it came within `max_tokens`."""
    found: list[tuple[int, ...]] = [()] * len(rows)
    for chosen, read in _by_length(base, learned, rows, max_tokens):
        for i, ids in zip(chosen, read.continued(max_tokens, pick), strict=True):
            found[i] = ids
        if see is not None:
            see(len(chosen))
    return found


@torch.no_grad()
def answered(
    base: Base,
    speaker: Speaker | None,
    rows: Sequence[Row],
    max_tokens: int,
    pick: Pick = likeliest,
    see: See | None = None,
) -> list[Row]:
    """The rows with what is `continued` after them as their answers, each `taught` by the speaker. What the output head
    is given before a token is seen as the token is said, so that nothing is run for it."""
    found = list(rows)
    batches = _by_length(base, speaker, rows, max_tokens)
    with heard(base.model.get_output_embeddings()) as seen:
        for chosen, read in batches:
            answers = read.continued(max_tokens, pick)
            states = torch.stack(seen, dim=1).float().cpu().numpy()  # [rows, steps, hidden]
            seen.clear()
            for i, ids, own in zip(chosen, answers, states, strict=True):
                found[i] = replace(rows[i], answer=ids, taught=own[: len(ids)].copy())
            if see is not None:
                see(len(chosen))
    return found


@torch.no_grad()
def _answered(
    base: Base, learned: Speaker | None, rows: Sequence[Row], max_tokens: int, labels: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Each row's greedy text, and its likeliest label where there are labels: inputs are read once for both."""
    texts, likeliest_of = [""] * len(rows), [""] * len(rows)
    answers = [tuple(base.encoder.encode(label, add_special_tokens=False)) for label in labels]
    for chosen, read in _by_length(base, learned, rows, max([max_tokens, *map(len, answers)])):
        if answers:
            for i, best in zip(chosen, read.scores(answers).argmax(1).tolist(), strict=True):
                likeliest_of[i] = labels[best]
        for i, ids in zip(chosen, read.continued(max_tokens, likeliest), strict=True):
            texts[i] = base.text(ids)
    return texts, likeliest_of


def _by_length(
    base: Base, learned: Speaker | None, rows: Sequence[Row], more: int
) -> Iterator[tuple[list[int], Reading]]:
    """The rows' inputs in batches of like length, read: their indices, and what they are gone on from by `more`
    tokens. What all begin with is read once."""
    inputs = [Row(row.ids, ()) for row in rows]
    speaker = shared_prompt(base, learned or Bare(base), inputs, more)  # at once, not with the first batch
    return (
        (chosen, base.read(speaker.inputs(speaker.collate([inputs[i] for i in chosen]))))
        for chosen in base.batches(inputs, BATCH, prefix=speaker.prefix, more=more)
    )


def inputs_of(base: Base, learned: Speaker | None, rows: Sequence[Row]) -> dict[str, Any]:
    """What the base is called with for these rows, which `Base.batches` lets be together; for None, the bare model."""
    speaker = learned or Bare(base)
    return speaker.inputs(speaker.collate(rows))


@torch.no_grad()
def answering(
    base: Base, learned: Speaker | None, rows: Sequence[Row], size: int
) -> Iterator[tuple[list[Row], torch.Tensor]]:
    """The rows in batches of like length, at most `size` at once: with each the logits before each token of its rows'
    answers, `[tokens, vocabulary]`, one row after the other. What all begin with is read once."""
    speaker = shared_prompt(base, learned or Bare(base), rows, 0)
    for chosen in base.batches(rows, size, prefix=speaker.prefix):
        some = [rows[i] for i in chosen]
        batch = speaker.collate(some)
        yield some, base.answering(speaker.inputs(batch), batch)[batch.targets != IGNORE]


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)
