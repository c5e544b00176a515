"""How near a migrated prompt comes to the old one, on inputs that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from softmux.tuning.distilling.agreement import compared
from softmux.tuning.frozen.output_head import Head
from softmux.tuning.migration.lessons import Taught
from softmux.tuning.voices.voice import Voice


@dataclass(frozen=True, slots=True)
class Likeness:
    """Over `rows` held-out inputs. `same_answer`: the share whose greedy text is the old one, as far as that goes where
    it had not ended. Where both bases speak the same tokens, `divergence`: KL(old || new) of the next token, the mean
    over the old answers' tokens, and `same_token`: the share of them where both have the same likeliest token."""

    rows: int
    same_answer: float
    divergence: float | None
    same_token: float | None


@torch.no_grad()
def likeness(voice: Voice, test: Sequence[Taught], head: Head, max_tokens: int) -> Likeness:
    base = voice.base
    rows = [one.row(voice.layout, base) for one in test]
    answers = voice.answers([row.ids for row in rows], max_tokens)
    same = sum(_same(base.text(ids), one) for ids, one in zip(answers, test, strict=True)) / len(test)
    if any(row.taught is None for row in rows):
        return Likeness(len(test), same, None, None)
    with voice.speaking():
        return Likeness(len(test), same, *compared(base, voice, rows, head))


def _same(text: str, old: Taught) -> bool:
    return text == old.said if old.ended else text.startswith(old.said)
