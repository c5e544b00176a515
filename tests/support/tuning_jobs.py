"""Jobs over the tiny base, one of every way of learning, and what their gradients are."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.frozen.module import FrozenModule
from softmux.tuning.frozen.packing import prepare
from softmux.tuning.learned.methods import Learned, begin, start_of, take_out
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning, PTuning, Train
from softmux.tuning.training.job import Job
from softmux.tuning.training.many import Trainer

MODULES = ["q_proj", "down_proj"]
METHODS = {
    "prompt": PromptTuning(kind="prompt_tuning", virtual_tokens=4),
    "prompt-longer": PromptTuning(kind="prompt_tuning", virtual_tokens=6),
    "mlp": PTuning(kind="p_tuning", virtual_tokens=4),
    "lstm": PTuning(kind="p_tuning", virtual_tokens=3, encoder="LSTM", encoder_hidden_size=16),
    "prefix": PrefixTuning(kind="prefix_tuning", virtual_tokens=3, projection=False),
    "prefix-projected": PrefixTuning(kind="prefix_tuning", virtual_tokens=5, encoder_hidden_size=24),
    "lora": Lora(kind="lora", rank=4, alpha=8, target_modules=MODULES),
    "pair": LoraPrefixTuning(
        kind="lora+prefix_tuning", rank=2, alpha=8, virtual_tokens=3, projection=False, target_modules=MODULES
    ),
}
HOW = Train(steps=12, learning_rate=1e-2, batch_rows=4, warmup_steps=2, validate_every=4)


def fresh(method: str, base: Base, seed: int) -> Learned:
    """Of a LoRA, the second matrix is not zero either: every number has a gradient."""
    torch.manual_seed(seed)
    learned = begin(METHODS[method], base)
    with torch.no_grad():
        for parameter in learned.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return learned


def rows_for(virtual_tokens: int, count: int, seed: int, vocabulary: int) -> list[Row]:
    """Of 4 to 30 tokens, learned ones in front, with answers of 1 to 4."""
    draw = random.Random(seed)
    learned = [-1 - i for i in range(virtual_tokens)]
    return [
        Row(
            (*learned, *(draw.randrange(3, vocabulary) for _ in range(draw.randrange(3, 27)))),
            tuple(draw.randrange(3, vocabulary) for _ in range(draw.randrange(1, 5))),
        )
        for _ in range(count)
    ]


def job(name: str, method: str, base: Base, seed: int, how: Train = HOW) -> Job:
    learned = fresh(method, base, seed)
    rows = rows_for(learned.layout.virtual_tokens, 12, seed, base.vocab_size)
    made = Job(name, start_of(learned), rows, rows[:4], how.model_copy(update={"seed": seed}), learned.prefix)
    take_out(learned)
    return made


def gradients(frozen: FrozenModule, jobs: Sequence[Job], tokens: int) -> dict[str, tuple[float, list[torch.Tensor]]]:
    """Of each job the loss and the gradients on its first four rows, all in one step."""
    trainer = Trainer(frozen, tokens=tokens, at_once=len(jobs))
    with frozen.running():
        active = [trainer.enter(each) for each in jobs]
        rows = [[prepare(row, a.job.prefix, a.job.how.dampening) for row in a.job.rows[:4]] for a in active]
        losses = trainer.gradients(rows).tolist()
    found = {}
    for member, loss in zip(active, losses, strict=True):
        own = [value.grad for value in member.cohort.values]
        found[member.job.name] = (loss, [g[trainer.index(member)] for g in own if g is not None])
    return found


def check_alone_as_among(frozen: FrozenModule, jobs: Sequence[Job], chosen: Sequence[Job]) -> None:
    """What each of `chosen` makes alone is what it makes among all `jobs`: losses and gradients."""
    among = gradients(frozen, jobs, 500)
    for each in chosen:
        alone = gradients(frozen, [each], 10_000)[each.name]
        assert len(alone[1]) == len(each.start.values())
        assert among[each.name][0] == pytest.approx(alone[0], rel=1e-6)
        assert apart(among[each.name][1], alone[1]) < 1e-5


def apart(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> float:
    """The largest difference, beside the largest number of its tensor."""
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(one, other, strict=True))
