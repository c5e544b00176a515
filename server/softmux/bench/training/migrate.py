"""What a migration keeps: a base is changed by some steps of fine-tuning, and the shipped tasks are taught to what it
has become, without their training data; their held-out figures before, after, and unmigrated.

`softmux bench migrate` does it on a GPU in minutes; `--tasks`, `--change-steps`, `--rows`, `--steps` and `--held-out`
make it small enough for a CPU. The changed base is kept in `--out`, and used again where it is there.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from softmux.demo import demo_model
from softmux.formats.folder import load_folder
from softmux.tuning.bases.base import Base, open_source
from softmux.tuning.data.split import is_held_back
from softmux.tuning.migration.migrate import Bases, migrate
from softmux.tuning.migration.migrated import KEEPS, Migration, figures, page, table
from softmux.tuning.migration.plan import How, OldTask
from softmux.tuning.sources import SOURCES
from softmux.tuning.training.together import Together

TASKS = "address,capital,person-or-company,sentiment,source"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="softmux bench migrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="a folder for the changed base and the figures")
    parser.add_argument("--model", help="the old base; default: the demo's")
    parser.add_argument(
        "--adapters", type=Path, default=Path("adapters"), help="the tasks' folders, with their recipes"
    )
    parser.add_argument("--tasks", default=TASKS, help="which of them")
    parser.add_argument("--change-steps", type=int, default=300, help="of fine-tuning all of the base's weights")
    parser.add_argument("--change-rate", type=float, default=3e-5, help="its learning rate")
    parser.add_argument("--rows", type=int, default=1000, help="made-up inputs a task")
    parser.add_argument("--steps", type=int, default=300, help="of training the new prompts")
    parser.add_argument("--held-out", type=int, default=500, help="labelled rows measured on, at most")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args(arguments)
    console = Console(stderr=True, width=160)
    old = said.model or str(demo_model())
    new = said.out / "changed-base"
    if not new.is_dir():
        _change(old, new, said, console)
    tasks = [OldTask(name, load_folder(said.adapters / name)) for name in said.tasks.split(",")]
    how = How(
        recipes=said.adapters, rows=said.rows, held_out=said.held_out, steps=said.steps, seed=said.seed
    )  # fmt: skip
    together = Together(kept=said.out / "kept")
    found, finish = migrate(tasks, Bases.of(old, str(new)), how, said.device, console=console, together=together)
    (said.out / "migration.json").write_text(json.dumps(figures(found), indent=2) + "\n", encoding="utf-8")
    (said.out / "migration.md").write_text(page(found), encoding="utf-8")
    finish()
    console.print(table(found))
    for line in summary(found):
        sys.stdout.write(line + "\n")
    return 0


def summary(found: Migration) -> list[str]:
    """Each task's share of its old figure, beside the one that is asked of it."""
    lines = []
    for one in found.moved:
        if one.old_figures is None or one.figures is None or one.metric is None:
            continue
        old, new = one.old_figures.values[one.metric], one.figures.values[one.metric]
        was = one.unmigrated_figures.values[one.metric] if one.unmigrated_figures else float("nan")
        share = new / old if old else float("nan")
        lines.append(
            f"{one.task}: {one.metric} {old:.3f} → {new:.3f}, {share:.1%} of it (asked: {KEEPS:.0%}); unmigrated "
            f"{was:.3f}; agrees in {one.likeness.same_answer:.1%} of {one.likeness.rows} inputs"
        )
    return [*lines, *(f"{one.task}: left, {one.why}" for one in found.left)]


def _change(old: str, new: Path, said: argparse.Namespace, console: Console) -> None:
    """Fine-tunes every weight of the base on texts of four kinds, and saves it with its tokenizer."""
    texts = [x.text for x in SOURCES["text-source"].load() if not is_held_back(x.text)]
    base = open_source(old, Path(old).name, said.device)
    started = time.monotonic()
    losses = fine_tune(base, texts, said.change_steps, said.change_rate, said.seed)
    console.print(
        f"the base was changed by {len(losses)} steps of 16 texts in {time.monotonic() - started:.0f} s: its "
        f"loss on them went from {sum(losses[:5]) / len(losses[:5]):.3f} to {sum(losses[-5:]) / len(losses[-5:]):.3f}"
    )
    base.model.save_pretrained(new)
    base.tokenizer.save_pretrained(new)


def fine_tune(base: Base, texts: Sequence[str], steps: int, rate: float, seed: int = 0, rows: int = 16) -> list[float]:
    """Changes all weights in place, on the next token of `texts` and of their end; each step's loss."""
    draw = random.Random(seed)  # noqa: S311 - which texts is no secret
    ids = [[*base.encoder.encode(text, add_special_tokens=True)[:64], base.end_id] for text in texts]
    model = base.model.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    losses = []
    for step in range(steps):
        chosen = draw.sample(ids, min(rows, len(ids)))
        width = max(map(len, chosen))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in chosen], device=base.device)
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in chosen], device=base.device)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        loss = model(input_ids=tokens, attention_mask=real, labels=tokens.masked_fill(real == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        losses.append(loss.item())
    model.requires_grad_(False).eval()
    return losses
