"""A base in several formats side by side: memory, throughput, and what tuned tasks are worth on each.

`softmux bench formats --model DIR --adapters DIR`: the held-out rows of every task's `recipe.toml` go through
the engine in this process, all tasks in one batch, one format after the other.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softmux.engine.local import LocalEngine, Place
from softmux.errors import BaseMismatch, InvalidAdapter, InvalidRequest
from softmux.formats.folder import load_folder, read_adapter
from softmux.formats.layout import Layout, TransformersEncoder, lay_out
from softmux.inspection.base import describe
from softmux.settings import Settings
from softmux.tuning import sources
from softmux.tuning.data.examples import Example
from softmux.tuning.data.split import split
from softmux.tuning.evaluate import score
from softmux.tuning.recipes.recipe import Recipe, read_recipe
from softmux.types import SamplingParams


@dataclass(frozen=True, slots=True)
class Task:
    recipe: Recipe
    files: Mapping[str, bytes]
    rows: Sequence[Example]


@dataclass(frozen=True, slots=True)
class Result:
    """`figures`: each task's first figure on its held-out rows, from 0 to 1. `tokens` are those generated."""

    quantization: str | None
    weight_bytes: int
    tokens: int
    seconds: float
    figures: Mapping[str, float]


def load_tasks(folder: Path, rows: int, cache: Path | None = None, names: Sequence[str] = ()) -> list[Task]:
    """The adapters' folders in `folder` that have a recipe and weights, with at most `rows` held-out rows each. `names`
    picks among them; one that is not there is refused, with those that are."""
    tasks = []
    paths = [path for path in sorted(folder.glob("*/recipe.toml")) if (path.parent / "adapter_config.json").is_file()]
    if missing := sorted(set(names) - {path.parent.name for path in paths}):
        there = ", ".join(path.parent.name for path in paths) or "none"
        raise InvalidRequest(
            f"{folder} holds no adapter with a recipe called {', '.join(missing)}; it holds {there}.", param="tasks"
        )
    for path in paths:
        if names and path.parent.name not in names:
            continue
        recipe = read_recipe(path)
        examples = sources.load(recipe.data, path.parent, cache)
        held_out = split(examples, recipe.train.validation_rows).test
        tasks.append(Task(recipe, load_folder(path.parent), held_out[:rows]))
    return tasks


def fitting(tasks: Sequence[Task], model: str) -> tuple[list[Task], list[str]]:
    """Those that generate on the base `model`, and the names of the others: made for another base, or with a head."""
    spec = describe(model, fingerprints=True)
    fit, left = [], []
    for task in tasks:
        try:
            manifest = read_adapter(task.files, spec).manifest
        except (BaseMismatch, InvalidAdapter):
            left.append(task.recipe.task)
            continue
        (left.append(task.recipe.task) if manifest.head else fit.append(task))
    return fit, left


def measure(settings: Settings, tasks: Sequence[Task], passes: int = 1) -> Result:
    """Loads the base as `settings` say, and runs every row of every task greedily, as requests that come at once;
    `passes` times over, each without the texts' KV of the one before. The last is what counts."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(settings.model)
    local = LocalEngine(settings)
    engine = local.engine
    asked: list[tuple[str, tuple[int, ...], SamplingParams, Place]] = []
    for number, task in enumerate(tasks):
        layout, place = Layout.of(local.adopt(task.files).manifest), local.place(number)
        encoder = TransformersEncoder(tokenizer)
        sampling = SamplingParams(max_tokens=task.recipe.evaluate.max_tokens)
        for at, row in enumerate(task.rows):
            ids = lay_out(layout, encoder, vocab_size=engine.spec.vocab_size, prompt=row.text)
            asked.append((f"{task.recipe.task} {at}", ids, sampling, place))
    for _ in range(passes):
        local.forget_texts()
        texts: dict[str, list[int]] = {name: [] for name, *_ in asked}
        began = time.perf_counter()
        for name, ids, sampling, place in asked:
            engine.add(name, ids, sampling, root=place.root, now=time.monotonic(), trained_prefix=place.trained_prefix)
        while engine.scheduler.running or len(engine.scheduler.waiting) or not engine.idle:
            news = local.step()
            for sequence, output in news.each():
                texts[sequence.id].extend(output.tokens)
            for _, error in news.failed:
                raise error
        seconds = time.perf_counter() - began
    spec = engine.spec
    local.close()
    figures = {}
    for task in tasks:
        said = [texts[f"{task.recipe.task} {number}"] for number in range(len(task.rows))]
        words = [tokenizer.decode([token for token in ids if token not in spec.eos_token_ids]) for ids in said]
        values = score(task.recipe.evaluate.metric, words, [row.answer for row in task.rows])
        figures[task.recipe.task] = next(iter(values.values()))
    return Result(spec.quantization, spec.weight_bytes, sum(map(len, texts.values())), seconds, figures)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="softmux bench formats", description=__doc__)
    parser.add_argument("--model", required=True, help="a folder in Hugging Face's layout")
    parser.add_argument("--adapters", required=True, type=Path, help="a folder of adapters' folders with recipes")
    parser.add_argument("--formats", default="auto,int8,nf4", help="values of --quantization (auto,int8,nf4)")
    parser.add_argument("--rows", type=int, default=1 << 20, help="held-out rows of each task at most (all)")
    parser.add_argument("--tasks", nargs="+", default=(), metavar="NAME", help="these folders alone")
    parser.add_argument("--passes", type=int, default=1, help="over all rows; the last one counts")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    options = parser.parse_args(arguments)
    if options.rows < 1 or options.passes < 1:
        parser.error("--rows and --passes are 1 at least")
    tasks, left = fitting(load_tasks(options.adapters, options.rows, names=options.tasks), options.model)
    if left:
        sys.stdout.write(f"left out, as they do not generate on this base: {', '.join(left)}\n")
    if not tasks:
        raise InvalidRequest(f"{options.adapters} holds no task that generates on {options.model}.", param="adapters")
    rows = {task.recipe.task: len(task.rows) for task in tasks}
    sys.stdout.write(f"held-out rows: {', '.join(f'{name} {count}' for name, count in rows.items())}\n")
    for name in options.formats.split(","):
        settings = Settings.model_validate(
            {"model": options.model, "device": options.device, "dtype": options.dtype, "quantization": name}
            | {"max_waiting": 1 << 20}
        )
        found = measure(settings, tasks, options.passes)
        figures = ", ".join(f"{task} {value:.3f}" for task, value in found.figures.items())
        sys.stdout.write(
            f"{name}: {found.weight_bytes / 1e6:.1f} MB of weights, {found.tokens / found.seconds:.1f} tokens/s "
            f"({found.tokens} in {found.seconds:.1f} s), {figures}\n"
        )
        sys.stdout.flush()
