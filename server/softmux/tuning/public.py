"""`softmux.tuning` as Python: tasks and a base in, what they learned out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console

from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.softmux_json import SOFTMUX_FILE, SoftmuxJson
from softmux.tuning.base import Base, as_base, open_source
from softmux.tuning.beginning import Beginner, Beginning, Beginnings
from softmux.tuning.board import shown
from softmux.tuning.data import Example, checked
from softmux.tuning.from_peft import method_of
from softmux.tuning.job import Finished, Job
from softmux.tuning.library import Library
from softmux.tuning.method_recipe import MethodRecipe
from softmux.tuning.methods import Learned, begin, put, start_of, take_out
from softmux.tuning.recipe import Lora, LoraPrefixTuning, PrefixTuning, PromptTuning, PTuning, Train
from softmux.tuning.rows import Row, encode
from softmux.tuning.split import split
from softmux.tuning.together import Together, precision, train_together
from softmux.tuning.trainer import Progress, Trained
from softmux.tuning.transfer import saved_method
from softmux.tuning.write import write_peft

Method = PromptTuning | PTuning | PrefixTuning | Lora | LoraPrefixTuning
Pairs = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Task:
    """A task to tune. `rows` are (what a user sends, what should come back, its leading space included); `method` is a
    recipe's method or one of PEFT's configs. Without `validation` about a tenth of the rows validate, by a hash of
    their text; those whose hash makes them test rows are then neither trained nor selected on. `labels` are words that
    vectors may begin as."""

    name: str
    rows: Pairs
    method: Method | Any
    train: Train = field(default_factory=lambda: Train(steps=500, learning_rate=1e-2))
    validation: Pairs | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of a task. `values` are its numbers at the best step, by name; `error` says why there are none.
    `begun`: what its start had of another adapter, in words."""

    name: str
    trained: Trained
    values: dict[str, torch.Tensor]
    error: str | None
    lengths: tuple[int, int]
    begun: str
    _template: str | None
    _restore: Callable[[], Learned]

    def save(self, folder: Path | str) -> Path:
        """Writes the adapter as PEFT saves it, with `softmux.json`: what `softmux upload` takes. Raises `SoftmuxError`
        where the task could not be learned."""
        if self.error is not None:
            raise SoftmuxError(f"{self.name}: {self.error}")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        learned = self._restore()
        try:
            write_peft(folder, learned)
        finally:
            take_out(learned)
        notes = f"Begun from {self.begun}." if self.begun else None
        said = SoftmuxJson(template=self._template, trained_lengths=list(self.lengths), notes=notes)
        (folder / SOFTMUX_FILE).write_text(json.dumps(said.model_dump(exclude_none=True), indent=2) + "\n", "utf-8")
        return folder


def open_base(model: Any, tokenizer: Any = None, *, device: str = "auto", label: str = "") -> Base:
    """A base to tune over: a folder, a hub id, or a loaded decoder or encoder-decoder with its tokenizer. In float32;
    it is frozen, and stays as it is."""
    if isinstance(model, str | Path):
        name = Path(model).name if Path(model).is_dir() else str(model)
        return open_source(str(model), label or name, device)
    if tokenizer is None:
        raise InvalidRequest("A loaded model needs its tokenizer.", param="tokenizer")
    return as_base(model, tokenizer, label or str(getattr(model.config, "name_or_path", "") or "base"))


def tune(
    tasks: Sequence[Task],
    base: Base,
    *,
    together: Together | None = None,
    watch: Callable[[str, Progress], None] | None = None,
    library: Library | None = None,
) -> list[Tuned]:
    """Tunes all `tasks` at once over `base`, each as it would be tuned alone. `watch` is told of every step. An
    `init_from` that names a task is looked up in `library`; a folder is from where the process runs.

    In the order given; a task whose loss stops being a number has an `error`, and the others go on. The first task's
    `train.bfloat16` says for all in which precision the base multiplies. Raises `BadData` for rows, `InvalidRequest`
    for a method that can't be tuned.
    """
    together = together or Together(save_every=0)
    console = Console(stderr=True, quiet=True)
    beginnings = Beginnings(base, library, console)
    made = [_job(task, base, beginnings) for task in tasks]
    jobs = [job for job, *_ in made]
    if len({job.name for job in jobs}) < len(jobs):
        raise InvalidRequest("Two tasks have one name: give each its own.", param="name")
    if not jobs:
        return []
    with shown(console, {job.name: job.how.steps for job in jobs}, together.tensorboard) as board:

        def see(name: str, progress: Progress) -> None:
            board.see(name, progress)
            if watch is not None:
                watch(name, progress)

        finished, checkpoint = train_together(base, jobs, precision(base, jobs[0].how), together, see, console)
    checkpoint.remove()
    return [
        Tuned(
            ended.name,
            ended.trained,
            ended.values,
            ended.error,
            lengths,
            begun.words,
            method.template if isinstance(method, PTuning) else None,
            _restorer(task, method, base, ended, begun),
        )
        for ended, task, (_, method, lengths, begun) in zip(finished, tasks, made, strict=True)
    ]


def _job(task: Task, base: Base, beginnings: Beginnings) -> tuple[Job, Method, tuple[int, int], Beginning]:
    known = isinstance(task.method, PromptTuning | PTuning | PrefixTuning | Lora | LoraPrefixTuning)
    method: Method = task.method if known else method_of(task.method, base.task_type)
    base.check(method, task.train)
    examples = _examples(task.rows, task.name)
    if task.validation is None:
        parts = split(examples, task.train.validation_rows)
        train, validation = list(parts.train), list(parts.validation)
    else:
        train, validation = examples, _examples(task.validation, f"{task.name}'s validation")

    def fresh(some: MethodRecipe) -> Learned:
        torch.manual_seed(task.train.seed)
        return begin(cast(Method, some), base, task.labels)

    learned = fresh(method)
    end_id = base.end_id if task.train.end_token else None

    def encoded(some: Sequence[Example]) -> list[Row]:
        found = [encode(example, learned.layout, base.encoder, base.vocab_size, end_id) for example in some]
        base.check_room(some, found, learned.prefix)
        return found

    try:
        rows, kept = encoded(train), encoded(validation)
        start = start_of(learned)
    finally:
        take_out(learned)
    begun = beginnings.of(Beginner(task.name, method, task.train, Path(), fresh, kept, learned.prefix), start)
    job = begun.job(task.name, rows, kept, task.train, learned.prefix)
    return job, method, (min(row.prompt_tokens for row in rows), max(row.prompt_tokens for row in rows)), begun


def _examples(pairs: Pairs, name: str) -> list[Example]:
    return checked((Example(text, answer, name, i) for i, (text, answer) in enumerate(pairs, start=1)), classes=False)


def _restorer(task: Task, method: Method, base: Base, ended: Finished, begun: Beginning) -> Callable[[], Learned]:
    def restore() -> Learned:
        learned = begin(cast(Method, saved_method(method, begun.origin)), base, task.labels)
        put(learned, begun.start.folded(ended.values))
        learned.train(False)
        return learned

    return restore
