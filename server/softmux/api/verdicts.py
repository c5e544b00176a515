"""From a head's outputs, or labels' likelihoods, to what a client is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from softmux.api.windows import Piece, Window
from softmux.types import ProblemType

Scores = Sequence[float]


def softmax(values: Scores) -> list[float]:
    highest = max(values)
    powers = [math.exp(value - highest) for value in values]
    total = sum(powers)
    return [power / total for power in powers]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def read_scores(values: Scores, problem: ProblemType) -> list[float]:
    """A head's outputs as they are told: probabilities of one label, of each label, or the outputs themselves."""
    if problem == "single_label_classification":
        return softmax(values)
    if problem == "multi_label_classification":
        return [sigmoid(value) for value in values]
    return [float(value) for value in values]


def of_sequence(labels: Sequence[str], scores: Scores, problem: ProblemType) -> dict[str, Any]:
    """`label` is the highest's; of several at once, `labels` are those that are likelier than not."""
    best = max(range(len(labels)), key=scores.__getitem__)
    told: dict[str, Any] = {"label": labels[best], "score": scores[best]}
    if problem == "multi_label_classification":
        told["labels"] = [label for label, score in zip(labels, scores, strict=True) if score >= 0.5]
    return {**told, "scores": dict(zip(labels, scores, strict=True))}


def mean(scores: Sequence[Scores]) -> list[float]:
    """Of a long text's windows, each as good as the others."""
    return [sum(column) / len(scores) for column in zip(*scores, strict=True)]


def of_tokens(
    text: str,
    labels: Sequence[str],
    pieces: Sequence[Piece],
    windows: Sequence[tuple[Window, Sequence[Scores]]],
    *,
    words: bool,
) -> dict[str, Any]:
    """Each token's label, from the window that shows most around it; `scores` `[ids of the window][labels]`. With
    `words`, a word has its first token's."""
    best: list[tuple[int, Scores]] = [(-1, ())] * len(pieces)
    for window, scores in windows:
        for at in range(window.first, window.first + window.count):
            here = window.centrality(at), scores[window.lead + at - window.first]
            if here[0] > best[at][0]:
                best[at] = here
    told: list[dict[str, Any]] = []
    before: int | None = None
    for piece, (_, outputs) in zip(pieces, best, strict=True):
        start, end = piece.start, piece.end
        while start < end and text[start].isspace():
            start += 1
        if words and piece.word is not None and piece.word == before and told:
            told[-1]["end"] = max(end, told[-1]["end"])
            told[-1]["text"] = text[told[-1]["start"] : told[-1]["end"]]
            continue
        before = piece.word
        if start >= end:
            continue
        probabilities = softmax(outputs)
        label = max(range(len(labels)), key=probabilities.__getitem__)
        told.append(
            {"text": text[start:end], "start": start, "end": end, "label": labels[label], "score": probabilities[label]}
        )
    return {"tokens": told}
