"""What a recipe's task is worth as softmux trains it, beside PEFT's own training of it: held-out figures by seed.

`softmux bench peft-training adapters/sentiment/recipe.toml` trains each recipe by each seed: softmux all seeds at once,
PEFT with the Hugging Face trainer one after the other, from the same start, on the same rows, for the same steps of as
many rows, with the same rates, and both keep their best step by the same validation rows. Made-up rows count in both.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from softmux.errors import InvalidRequest
from softmux.tuning.bases.base import Base, load_base
from softmux.tuning.bases.encoder_decoder import EncoderDecoderBase
from softmux.tuning.data.examples import Example
from softmux.tuning.data.rows import IGNORE, Row
from softmux.tuning.evaluate import evaluate
from softmux.tuning.learned.methods import Learned, lent, put, start_of
from softmux.tuning.plan import Plan, plan_of
from softmux.tuning.recipes.recipe import LoraPrefixTuning, PTuningV2, Recipe, read_recipe
from softmux.tuning.run import encode_all, fresh
from softmux.tuning.training.job import Job
from softmux.tuning.training.together import Together, precision, train_together


@dataclass(slots=True)
class Found:
    """Held-out figures of each seed, the recipe's metric first, and the seconds that training all seeds took."""

    figures: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="softmux bench peft-training", description=__doc__)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="in place of each recipe's")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    said = parser.parse_args(arguments)
    console = Console(stderr=True, width=160)
    everything: dict[str, Any] = {}
    for path in said.recipes:
        recipe = _checked(read_recipe(path))
        if said.steps:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"steps": said.steps})})
        plan = plan_of(path, path.parent, said.cache, recipe)
        base = load_base(recipe, said.device, said.cache)
        if isinstance(base, EncoderDecoderBase):
            raise InvalidRequest("The rows of both are laid out for decoders here: name one.", param="base")
        variants = [_with_seed(recipe, seed) for seed in said.seeds]
        found = {"softmux": Found(), "PEFT": Found()}
        _own(plan, base, variants, found["softmux"], console)
        for variant in variants:
            console.print(f"{recipe.task}, seed {variant.train.seed}: by PEFT and the Hugging Face trainer")
            with lent(fresh(variant, base)) as learned:
                _peft(plan, base, variant, learned, found["PEFT"])
        everything[recipe.task] = {
            name: {"figures": one.figures, "seconds": round(one.seconds, 1)} for name, one in found.items()
        }
        for line in summary(recipe.task, found):
            sys.stdout.write(line + "\n")
        if said.out:  # as it goes: a run may be ended
            said.out.write_text(json.dumps(everything, indent=2) + "\n", encoding="utf-8")
    return 0


def summary(task: str, found: dict[str, Found]) -> list[str]:
    """Each trainer's mean over seeds and its least and most, of the first figure."""
    lines = []
    for name, one in found.items():
        metric = next(iter(one.figures[0]))
        values = [figures[metric] for figures in one.figures]
        mean = statistics.mean(values)
        spread = f"{min(values):.3f} to {max(values):.3f}" if values[1:] else "one seed"
        lines.append(f"{task}, {name}: {metric} {mean:.3f} ({spread}), {one.seconds:.0f} s for {len(values)} seeds")
    return lines


def _checked(recipe: Recipe) -> Recipe:
    """Raises `InvalidRequest` for what PEFT's own forward does not train as it is served."""
    method = recipe.method
    if isinstance(method, PTuningV2 | LoraPrefixTuning) or recipe.template:
        raise InvalidRequest(
            "PEFT trains prompts in front of the input, and LoRAs, by itself: no head, template or pair.",
            param="method",
        )
    if getattr(method, "init_from", None):
        raise InvalidRequest("Both begin afresh here: take init_from out.", param="method.init_from")
    return recipe


def _with_seed(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def _rows(plan: Plan, learned: Learned, recipe: Recipe) -> tuple[list[Row], list[Row]]:
    return (
        encode_all([*plan.parts.train, *plan.extra], learned, recipe),
        encode_all(plan.parts.validation, learned, recipe),
    )


def _measured(plan: Plan, base: Base, learned: Learned, recipe: Recipe) -> dict[str, float]:
    learned.train(False)
    test: Sequence[Example] = plan.parts.test
    return evaluate(base, learned, test, recipe.evaluate, learned.layout, ()).values


def _own(plan: Plan, base: Base, variants: Sequence[Recipe], found: Found, console: Console) -> None:
    """All seeds at once, as `softmux tune` trains tasks."""
    jobs = []
    for variant in variants:
        with lent(fresh(variant, base)) as learned:
            rows, validation = _rows(plan, learned, variant)
            start = start_of(learned)
        jobs.append(Job(f"seed {variant.train.seed}", start, rows, validation, variant.train, learned.prefix))
    started = time.perf_counter()
    finished, _ = train_together(
        base, jobs, precision(base, variants[0].train), Together(save_every=0), lambda *_: None, console
    )
    found.seconds = time.perf_counter() - started
    for variant, ended in zip(variants, finished, strict=True):
        if ended.error is not None:
            raise InvalidRequest(ended.error, param="train.learning_rate")
        with lent(fresh(variant, base)) as learned:
            put(learned, ended.values)
            found.figures.append(_measured(plan, base, learned, variant))


def _peft(plan: Plan, base: Base, recipe: Recipe, learned: Learned, found: Found) -> None:
    """PEFT's own model of `learned`, which is fresh, by `transformers.Trainer`. Its own way of keeping the best step
    loads what PEFT saves, which for a reparameterised prompt is not what is trained: the numbers are kept here."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    rows, validation = (
        [{"ids": [i for i in row.ids if i >= 0], "answer": list(row.answer)} for row in some]
        for some in _rows(plan, learned, recipe)
    )
    how = recipe.train
    best: tuple[float, list[torch.Tensor]] = (math.inf, [])

    class Best(TrainerCallback):  # type: ignore[misc]
        def on_evaluate(self, _args: Any, _state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
            nonlocal best
            if metrics["eval_loss"] < best[0]:
                best = metrics["eval_loss"], [parameter.detach().clone() for parameter in learned.parameters()]

    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=learned.peft,
            args=TrainingArguments(
                output_dir=scratch,
                per_device_train_batch_size=how.batch_rows,
                per_device_eval_batch_size=64,
                max_steps=how.steps,
                learning_rate=how.learning_rate,
                warmup_steps=min(how.warmup_steps, how.steps // 2),
                lr_scheduler_type="linear",
                weight_decay=how.weight_decay,
                max_grad_norm=how.clip_norm,
                seed=how.seed,
                bf16=precision(base, how) == torch.bfloat16,
                eval_strategy="steps",
                eval_steps=min(how.validate_every, how.steps),
                save_strategy="no",
                prediction_loss_only=True,
                report_to=[],
                logging_strategy="no",
                disable_tqdm=True,
                remove_unused_columns=False,
                label_names=["labels"],
                use_cpu=base.device.type == "cpu",
            ),
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=collated,
            callbacks=[Best()],
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        found.seconds += time.perf_counter() - started
    with torch.no_grad():
        for parameter, value in zip(learned.parameters(), best[1]):  # noqa: B905 - none where every loss was no number
            parameter.copy_(value)
    found.figures.append(_measured(plan, base, learned, recipe))


def collated(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows of `ids` and `answer`, padded on the right to the batch's longest as the library's collators pad; scores
    are of answers alone."""
    whole = [torch.tensor([*row["ids"], *row["answer"]]) for row in rows]
    labels = [torch.tensor([IGNORE] * len(row["ids"]) + list(row["answer"])) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(row) for row in whole], batch_first=True)
    ids = pad(whole, batch_first=True)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": pad(labels, batch_first=True, padding_value=IGNORE),
    }
