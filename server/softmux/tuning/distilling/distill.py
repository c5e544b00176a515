"""`softmux distill`: the base with a long prompt teaches a short soft prompt to answer as it does.

read the recipe → gather the inputs → let the teacher answer them, and keep what its logits are made of → train on
KL(teacher || student) at every token of the answers → measure on held-out inputs → write the folder
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from softmux.errors import SoftmuxError
from softmux.formats.layout import Layout, lay_out
from softmux.tuning import sources
from softmux.tuning.bases.base import Base, load_base
from softmux.tuning.bases.device_words import device_words
from softmux.tuning.data.examples import Example, checked
from softmux.tuning.data.rows import Row
from softmux.tuning.data.split import split
from softmux.tuning.distilling.agreement import Agreement, Cost, agreement, prefill
from softmux.tuning.distilling.distilled import Distilled, readme, saved, softmux_json, table
from softmux.tuning.distilling.teacher import check_fits, invented, teacher_of
from softmux.tuning.evaluate import See, likeliest
from softmux.tuning.learned.methods import Learned, begin, lent, put, start_of
from softmux.tuning.recipes.distillation import Distillation, read_distillation
from softmux.tuning.recipes.recipe import Data
from softmux.tuning.sources import table as files
from softmux.tuning.training.board import counted, shown
from softmux.tuning.training.job import Job
from softmux.tuning.training.together import Together, precision, train_together
from softmux.tuning.voices.sampler import Sampler
from softmux.tuning.voices.speaker import Speaker
from softmux.tuning.voices.voice import Voice
from softmux.tuning.write import put_folder


@dataclass(frozen=True, slots=True)
class Asked:
    """Inputs, and the teacher's answers to them, which its rows are taught by."""

    prompts: Sequence[str]
    teacher: Sequence[Row]

    def rows(self, layout: Layout, base: Base) -> list[Row]:
        """The same, as rows of a student's."""
        return [
            replace(row, ids=lay_out(layout, base.encoder, vocab_size=base.vocab_size, prompt=prompt))
            for prompt, row in zip(self.prompts, self.teacher, strict=True)
        ]


def distill(
    recipe_path: Path,
    out: Path | None = None,
    device: str = "auto",
    *,
    base: Base | None = None,
    cache: Path | None = None,
    console: Console | None = None,
    together: Together | None = None,
) -> Distilled:
    """Distils the recipe's teacher and writes the student's folder to `out`, by default the recipe's own folder.

    `base` takes the place of the recipe's where it is loaded already. Progress goes to `console` (default: stderr).
    Raises `InvalidRequest` for a bad recipe or teacher, `BadData` for inputs. Nothing is written unless everything
    succeeded.
    """
    console, together = console or Console(stderr=True), together or Together()
    recipe = read_distillation(recipe_path)
    started = time.monotonic()
    base = base or load_base(recipe, device, cache)
    base.check(recipe.method, recipe.train)
    teacher = teacher_of(recipe, recipe_path.parent, base, cache)
    train, validation, test = _asked(recipe, recipe_path.parent, teacher, cache, console)
    torch.manual_seed(recipe.train.seed)
    with lent(begin(recipe.method, base)) as learned:
        learned.train(False)
        return _distilled(
            recipe, recipe_path, out or recipe_path.parent, teacher, learned, (train, validation, test), started,
            console, together,
        )  # fmt: skip


def _distilled(
    recipe: Distillation,
    recipe_path: Path,
    out: Path,
    teacher: Voice,
    learned: Learned,
    asked: tuple[Asked, Asked, Asked],
    started: float,
    console: Console,
    together: Together,
) -> Distilled:
    base = learned.base
    rows, validation, test = (part.rows(learned.layout, base) for part in asked)
    bare = asked[2].rows(Layout(), base)
    console.print(
        f"{recipe.task}: {len(rows)} inputs to train, {len(validation)} to validate, {len(test)} held out; "
        f"{sum(p.numel() for p in learned.parameters()):,} numbers to learn over {base.label}"
    )

    def held(student: Speaker | None, own: Sequence[Row], whose: str) -> Agreement:
        with counted(console, f"{whose}, held-out inputs", len(own)) as see:
            return agreement(base, student, own, recipe.teacher.max_tokens, see)

    start = held(learned, test, "the start")
    job = Job(recipe.task, start_of(learned), rows, validation, recipe.train, learned.prefix)
    with shown(console, {job.name: job.how.steps}, together.tensorboard) as board:
        dtype = precision(base, recipe.train)
        (ended,), checkpoint = train_together(base, [job], dtype, together, board.see, console)
    if ended.error is not None:
        checkpoint.remove()
        raise SoftmuxError(ended.error)
    put(learned, ended.values)
    console.print("measuring on the held-out inputs")
    middle = sorted(range(len(test)), key=lambda i: test[i].length)[len(test) // 2]

    def cost(speaker: Speaker | None, own: Sequence[Row]) -> Cost:
        added = sum(len(a.ids) - len(b.ids) for a, b in zip(own, bare, strict=True)) / len(own)
        return Cost(added, prefill(base, speaker, own[middle]))

    found = Distilled(
        recipe=recipe,
        base_label=base.label,
        trained=ended.trained,
        student=held(learned, test, "the student"),
        start=start,
        bare=held(None, bare, "the bare base"),
        long=cost(teacher, asked[2].teacher),
        short=cost(learned, test),
        rows=(len(rows), len(validation), len(test)),
        lengths=(min(row.prompt_tokens for row in rows), max(row.prompt_tokens for row in rows)),
        seconds=time.monotonic() - started,
        device=device_words(base.device),
    )
    put_folder(out, recipe_path, learned, softmux_json(found), lambda notes: readme(found, notes))
    checkpoint.remove()
    console.print(table(found))
    console.print(saved(found), f"→ {out}", highlight=False)
    return found


def _asked(
    recipe: Distillation, folder: Path, teacher: Voice, cache: Path | None, console: Console
) -> tuple[Asked, Asked, Asked]:
    """The inputs to train, to validate and held out, with the teacher's answers."""
    if recipe.inputs.path is not None:
        column = recipe.inputs.column
        file = recipe.inputs.path.name
        read: Iterable[Example] = files.read(folder / recipe.inputs.path, column, column)
    elif recipe.inputs.source is not None:
        column = file = "text"
        read = sources.load(Data(source=recipe.inputs.source), folder, cache)
    else:
        column, file = "text", "the generated inputs"
        console.print(f"making {recipe.inputs.generate} inputs")
        texts = invented(recipe, teacher.base)
        read = (Example(text, text, file, i) for i, text in enumerate(texts, start=1))
    examples = checked(read, classes=False, file=file, columns=(column, column))
    how = recipe.teacher
    inputs = {example.text: teacher.ids(example.text) for example in examples}
    check_fits(teacher.base, examples, [inputs[example.text] for example in examples], how.max_tokens)
    parts = split(examples, recipe.train.validation_rows)
    console.print(f"the teacher answers {len(examples)} inputs")

    def asked(some: Sequence[Example], temperature: float, see: See, *, learn: bool) -> Asked:
        prompts = [example.text for example in some]
        laid = [inputs[prompt] for prompt in prompts]
        pick = Sampler(temperature, recipe.train.seed, teacher.base.device) if temperature else likeliest
        rows = teacher.taught(laid, how.max_tokens, pick, see)
        if learn and not recipe.train.end_token:
            rows = [_without(teacher.base.eos_ids, row) for row in rows]
        kept = [(prompt, row) for prompt, row in zip(prompts, rows, strict=True) if row.answer]
        if not kept:
            raise SoftmuxError("The teacher answers with nothing: change its prompt.")
        return Asked([prompt for prompt, _ in kept], [row for _, row in kept])

    with counted(console, "answered", len(examples)) as see:
        return (
            asked(parts.train, how.temperature, see, learn=True),
            asked(parts.validation, how.temperature, see, learn=True),
            asked(parts.test, 0.0, see, learn=False),
        )


def _without(ends: Sequence[int], row: Row) -> Row:
    """The row with an answer that has no end."""
    assert row.taught is not None
    kept = [i for i, token in enumerate(row.answer) if token not in ends]
    return replace(row, answer=tuple(row.answer[i] for i in kept), taught=row.taught[kept])
