"""Starts over the tiny base, and adapters for them to begin from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from softmux.tuning.bases.base import Base
from softmux.tuning.data.rows import Row
from softmux.tuning.frozen.decoder import padded_base
from softmux.tuning.learned.methods import begin, start_of, take_out
from softmux.tuning.recipes.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning, Train
from softmux.tuning.starts.origin import Begun, Origins
from softmux.tuning.starts.transfer import Transferred, start_method, transferred
from softmux.tuning.training.cohort import Start
from softmux.tuning.training.job import Job
from softmux.tuning.training.many import Trainer
from support.loras import make_lora, make_pair
from support.models import make_adapter

HOW = Train(steps=8, learning_rate=2e-2, batch_rows=4, warmup_steps=2, validate_every=4)
MODULES = ["q_proj", "down_proj"]
METHODS: dict[str, Begun] = {
    "prompt": PromptTuning(kind="prompt_tuning", virtual_tokens=5, init_from="./origin"),
    "prefix": PrefixTuning(kind="prefix_tuning", virtual_tokens=4, init_from="./origin"),
    "lora": Lora(kind="lora", rank=4, alpha=3, init_from="./origin"),
    "pair": LoraPrefixTuning(kind="lora+prefix_tuning", rank=4, alpha=3, virtual_tokens=4, init_from="./origin"),
}


def make_origin(base: Base, kind: str, folder: Path, seed: int = 0) -> Any:
    """A random adapter that a method of that kind can begin from; PEFT's model of it."""
    from peft import PeftModel

    plain = copy.deepcopy(base.model)
    if kind == "lora":
        return make_lora(plain, folder, seed, target_modules=MODULES)
    if kind == "pair":
        return make_pair(plain, "prefix_tuning", folder, seed, target_modules=MODULES)
    make_adapter(plain, {"prompt": "prompt_tuning", "prefix": "prefix_tuning"}.get(kind, kind), folder, seed)
    return PeftModel.from_pretrained(plain, str(folder)).eval()


def begun(base: Base, method: Begun, folder: Path, origins: Origins | None = None) -> Transferred:
    """What a task of `method` starts with; its `init_from` is relative to `folder`."""
    assert method.init_from is not None
    origin = (origins or Origins(base, None)).named(method.init_from, method, folder)
    torch.manual_seed(0)
    shaped = start_method(method, origin)
    learned = begin(shaped, base)  # type: ignore[arg-type]
    own = start_of(learned)
    take_out(learned)
    return transferred(own, method, origin)


def rows_of(virtual_tokens: int) -> list[Row]:
    learned = [-1 - i for i in range(virtual_tokens)]
    return [Row((*learned, 5, 40 + i, 7, 90 - i, 12 + 3 * i), (30 + i, 61)) for i in range(6)]


def losses(base: Base, start: Start, prefix: int) -> torch.Tensor:
    """`[rows]`, of a start as it is, by the trainer's own forward."""
    rows = rows_of(start.outputs)
    jobs = [Job(str(i), start, [row], [row], HOW, prefix) for i, row in enumerate(rows)]
    return torch.tensor(Trainer(padded_base(base.model)).measure(jobs))


@torch.no_grad()
def peft_losses(model: Any, rows: Sequence[Row]) -> torch.Tensor:
    """The same by a PEFT model, which puts the learned tokens in front itself."""
    found = []
    for row in rows:
        ids = torch.tensor([[*(token for token in row.ids if token >= 0), *row.answer]])
        size = len(row.answer)
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -size - 1 : -1]
        found.append(cross_entropy(logits, torch.tensor(row.answer)))
    return torch.stack(found)
