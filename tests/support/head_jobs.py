"""Tasks with a head over tiny encoders: one of every kind, as jobs."""

from __future__ import annotations

import random
from typing import Any

import torch
from transformers import AutoModel

from softmux.tuning.bases.head_base import HeadBase
from softmux.tuning.data.rows import IGNORE, HeadRow
from softmux.tuning.learned.heads import HeadLearned, begin_prefix, head_start
from softmux.tuning.recipes.recipe import PTuningV2, Train
from softmux.tuning.training.job import Job
from support.headed import config_of

HOW = Train(steps=12, learning_rate=1e-2, batch_rows=4, warmup_steps=2, validate_every=4)
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "sequence": ({"virtual_tokens": 3}, 2),
    "pooler": ({"virtual_tokens": 5, "pooler": True}, 2),
    "projected": ({"virtual_tokens": 3, "projection": True, "encoder_hidden_size": 24}, 4),
    "token": ({"virtual_tokens": 4, "head": "token"}, 4),
    "token-projected": ({"virtual_tokens": 2, "head": "token", "projection": True}, 3),
}
"""Fields of the method, and how many labels."""


def head_base(architecture: str, **changes: Any) -> HeadBase:
    """A tiny encoder without dropout, so that PEFT's own training is the same from run to run."""
    config = config_of(architecture)
    config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_hidden_layers": 2} | changes)
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return HeadBase("", f"tiny-{architecture}", None, None, model, True)


def fresh(kind: str, base: HeadBase, seed: int) -> HeadLearned:
    fields, labels = KINDS[kind]
    torch.manual_seed(seed)
    return begin_prefix(PTuningV2(kind="p_tuning_v2", **fields), base, labels)


def rows_for(kind: str, count: int, seed: int, vocabulary: int) -> list[HeadRow]:
    """Of 4 to 30 tokens; of a token task, about a third of them without a label, the first always."""
    fields, labels = KINDS[kind]
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        ids = tuple(draw.randrange(3, vocabulary) for _ in range(draw.randrange(4, 31)))
        targets: tuple[int, ...] = (draw.randrange(labels),)
        if fields.get("head") == "token":
            said = [IGNORE if draw.random() < 0.3 else draw.randrange(labels) for _ in ids[1:-1]]
            targets = (IGNORE, *said, draw.randrange(labels))
        rows.append(HeadRow(ids, targets))
    return rows


def job(name: str, kind: str, base: HeadBase, seed: int, how: Train = HOW) -> Job:
    rows = rows_for(kind, 12, seed, base.vocab_size)
    start = head_start(fresh(kind, base, seed), KINDS[kind][0]["virtual_tokens"])
    return Job(name, start, rows, rows[:4], how.model_copy(update={"seed": seed}))
