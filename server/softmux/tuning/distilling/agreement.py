"""How near a student comes to its teacher on inputs that neither was trained on, and what it saves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch.nn.functional import kl_div

from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.evaluate import See, answering, continued, inputs_of
from softmux.tuning.frozen.output_head import Head, head_of
from softmux.tuning.voices.speaker import Speaker

BATCH = 16
_TIMES = 5


@dataclass(frozen=True, slots=True)
class Agreement:
    """`divergence`: KL(teacher || student) of the next token, the mean over the tokens of the teacher's answers;
    `same_token`: the share of them where both have the same likeliest token; `same_answer`: the share of inputs whose
    greedy answers are equal to the last token."""

    divergence: float
    same_token: float
    same_answer: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a prompt. `tokens`: what it adds to an input, learned ones included, the mean; `milliseconds`: the prefill of
    the input of middle length with it, the median of five."""

    tokens: float
    milliseconds: float


@torch.no_grad()
def agreement(
    base: Base, student: Speaker | None, rows: Sequence[Row], max_tokens: int, see: See | None = None
) -> Agreement:
    """Of a student and its teacher, on rows of the student's that have the teacher's answers and are taught by it. None
    for a student is the bare model. The whole vocabulary counts; computed by the unmodified module, padded."""
    divergence, same_token = compared(base, student, rows, head_of(base.model))
    answers = continued(base, student, rows, max_tokens, see=see)
    equal = sum(_bare(base, a) == _bare(base, row.answer) for a, row in zip(answers, rows, strict=True))
    return Agreement(divergence, same_token, equal / len(rows))


@torch.no_grad()
def compared(base: Base, student: Speaker | None, rows: Sequence[Row], head: Head) -> tuple[float, float]:
    """Of rows that a teacher of this `head` has taught: KL(teacher || student) of the next token, the mean over their
    answers' tokens, and the share of these where both have the same likeliest token."""
    total = same = tokens = 0.0
    for chosen, logits in answering(base, student, rows, BATCH):
        states = torch.cat([torch.from_numpy(row.taught) for row in chosen if row.taught is not None])
        wanted = head(states.to(base.device)).float().log_softmax(-1)
        said = logits.float().log_softmax(-1)
        total += float(kl_div(said, wanted, reduction="sum", log_target=True))
        same += float((said.argmax(-1) == wanted.argmax(-1)).sum())
        tokens += len(said)
    return total / tokens, same / tokens


@torch.no_grad()
def prefill(base: Base, speaker: Speaker | None, row: Row) -> float:
    """Milliseconds of one forward over the row's input, as it is when nothing of it is cached."""
    found = []
    for _ in range(_TIMES + 1):
        _wait(base)
        started = time.perf_counter()
        base.read(inputs_of(base, speaker, [Row(row.ids, ())]))
        _wait(base)
        found.append(time.perf_counter() - started)
    return 1000 * median(found[1:])


def _bare(base: Base, answer: Sequence[int]) -> tuple[int, ...]:
    return tuple(token for token in answer if token not in base.eos_ids)


def _wait(base: Base) -> None:
    if base.device.type == "cuda":
        torch.cuda.synchronize(base.device)
