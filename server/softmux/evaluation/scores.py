"""What one row's answer is worth, by each metric: so much of so much, which add up over rows."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from softmux.tuning.recipes.recipe import Metric

METRIC_NAMES: dict[Metric, str] = {
    "exact": "exact",
    "starts_with": "starts with",
    "json_fields": "field F1",
    "rouge_l": "ROUGE-L",
    "accuracy": "accuracy",
    "token_f1": "token F1",
}
METRICS = {
    "exact": "the greedy text is the answer, character for character",
    "starts with": "the greedy text begins with the answer",
    "label accuracy": "the likeliest of the task's answers is the right one",
    "field F1": "F1 over the (label, value) pairs of all rows together, a pair being right where both are equal; "
    "invalid JSON has no pairs",
    "valid JSON": "the greedy text is a JSON object",
    "ROUGE-L": "F1 of the longest common subsequence of words (letters and digits, lower case, no stemming), the mean "
    "over rows",
    "accuracy": "the likeliest label is the right one",
    "token F1": "micro-averaged over all words of the held-out rows, by each word's first token; as a word has one "
    "label and gets one, this is the share of words labelled rightly",
    "macro F1": "the mean of the F1 of each label that occurs in the held-out rows, however rare",
    "whole rows": "every word of the row is labelled rightly",
}
"""What each figure is, in words, for READMEs and reports."""


@dataclass(frozen=True, slots=True)
class Score:
    """A row's: `of` of `out_of`. A figure over rows is the sum of the one over the sum of the other."""

    of: float
    out_of: float = 1.0


def score_text(metric: Metric, text: str, answer: str) -> Score:
    """A generated text against the answer expected."""
    match metric:
        case "exact":
            return Score(float(text == answer))
        case "starts_with":
            return Score(float(text.startswith(answer)))
        case "rouge_l":
            return Score(rouge_l(text, answer))
        case "json_fields":
            said, meant = fields(text) or {}, fields(answer) or {}
            return Score(2.0 * len(said.items() & meant.items()), float(len(said) + len(meant)))
        case "accuracy" | "token_f1":
            raise ValueError(f"{metric} is of labels, not of texts")


def score_labels(found: Sequence[int], meant: Sequence[int]) -> Score:
    """Labels of a sequence (one), or of its words."""
    return Score(float(sum(a == b for a, b in zip(found, meant, strict=True))), float(len(meant)))


def fields(text: str) -> dict[str, str] | None:
    """The object a text says, its values as text; None where it is no JSON object."""
    try:
        said = json.loads(text)
    except json.JSONDecodeError:
        return None
    return {str(name): str(value) for name, value in said.items()} if isinstance(said, Mapping) else None


def rouge_l(text: str, answer: str) -> float:
    """Of one pair (Lin 2004): 2·P·R / (P + R), with the longest common subsequence of words over each one's length."""
    said, meant = _words(text), _words(answer)
    if not said or not meant:
        return float(said == meant)
    row = [0] * (len(meant) + 1)
    for word in said:
        corner = 0
        for at, other in enumerate(meant, start=1):
            above = row[at]
            row[at] = corner + 1 if word == other else max(above, row[at - 1])
            corner = above
    common = row[-1]
    return 2 * common / (len(said) + len(meant))


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())
