"""`softmux.tuning` as Python: tasks and a base in, what they learned out."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from softmux.engine.bases import family_of
from softmux.errors import InvalidRequest, SoftmuxError
from softmux.formats.softmux_json import SOFTMUX_FILE
from softmux.tuning.bases.base import Base, as_base, config_of, open_source
from softmux.tuning.bases.head_base import HeadBase, as_head_base, open_head_base
from softmux.tuning.bases.loaded import check_loaded
from softmux.tuning.evaluate import Figures
from softmux.tuning.learned.from_peft import method_of
from softmux.tuning.learned.headed import Headed, headed
from softmux.tuning.recipes.recipe import (
    Evaluate,
    Lora,
    LoraPrefixTuning,
    Metric,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
)
from softmux.tuning.starts.beginning import Beginnings
from softmux.tuning.starts.library import Library
from softmux.tuning.tasks.heads import head_task
from softmux.tuning.tasks.task import Pairs, Prepared, Task
from softmux.tuning.tasks.words import no_words, word_task
from softmux.tuning.training.board import shown
from softmux.tuning.training.job import Finished
from softmux.tuning.training.together import Together, precision, train_together
from softmux.tuning.training.trainer import Progress, Trained
from softmux.tuning.write import write_peft


@dataclass(frozen=True, slots=True)
class Tuned:
    """What became of a task. `values` are its numbers at the best step, by name; `error` says why there are none.
    `begun`: what its start had of another adapter, in words; `labels`: a head's, in the order of its outputs."""

    name: str
    trained: Trained
    values: dict[str, torch.Tensor]
    error: str | None
    lengths: tuple[int, int]
    begun: str
    labels: tuple[str, ...]
    _task: Prepared

    def save(self, folder: Path | str) -> Path:
        """Writes the adapter as PEFT saves it, with `softmux.json`: what `softmux upload` takes. Raises `SoftmuxError`
        where the task could not be learned."""
        ended = self._ended()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with self._task.opened(ended) as learned:
            write_peft(folder, learned)
        said = json.dumps(self._task.said.model_dump(exclude_none=True), indent=2, ensure_ascii=False)
        (folder / SOFTMUX_FILE).write_text(said + "\n", "utf-8")
        return folder

    def evaluate(self, rows: Pairs | None = None, *, metric: Metric = "exact", max_tokens: int = 8) -> Figures:
        """The figures of rows (by default those that the task held out), greedy answers by `metric`; a head's labels
        by accuracy, or by the F1 of words. Raises `BadData` for rows, `SoftmuxError` where the task could not be
        learned."""
        ended = self._ended()
        if rows is None and self._task.test is None:
            raise InvalidRequest(
                "Nothing was held out, since the validation rows were given: give rows to measure on.", param="rows"
            )
        test = self._task.test if rows is None else self._task.examples(rows, f"{self.name}'s rows")
        with self._task.opened(ended) as learned:
            return self._task.figures(learned, test or (), Evaluate(metric=metric, max_tokens=max_tokens))

    def _ended(self) -> Finished:
        if self.error is not None:
            raise SoftmuxError(f"{self.name}: {self.error}")
        return Finished(self.name, self.trained, self.values)


def open_base(model: Any, tokenizer: Any = None, *, device: str = "auto", label: str = "") -> Base | HeadBase:
    """A base to tune over: a folder, a hub id, or a loaded model with its tokenizer; a `HeadBase` where it is an
    encoder, which says nothing but what a head says. It is frozen, and stays as it is. What is loaded here is in
    float32; a decoder that is given loaded runs in its own precision.

    Raises `InvalidRequest` where no base can be read, and for a loaded model that is none (`check_loaded`)."""
    if isinstance(model, str | Path):
        source = str(model)
        name = label or (Path(model).name if Path(model).is_dir() else source)
        if family_of(config_of(source)) == "encoder":
            return open_head_base(source, name, device)
        return open_source(source, name, device)
    check_loaded(model)
    if tokenizer is None:
        raise InvalidRequest("A loaded model needs its tokenizer.", param="tokenizer")
    name = label or str(getattr(model.config, "name_or_path", "") or "base")
    return (as_head_base if family_of(model.config) == "encoder" else as_base)(model, tokenizer, name)


def tune(
    tasks: Sequence[Task],
    base: Base | HeadBase,
    *,
    together: Together | None = None,
    watch: Callable[[str, Progress], None] | None = None,
    library: Library | None = None,
) -> list[Tuned]:
    """Tunes all `tasks` at once over `base`, each as it would be tuned alone. `watch` is told of every step. An
    `init_from` that names a task is looked up in `library`; a folder is from where the process runs.

    In the order given; a task whose loss stops being a number has an `error`, and the others go on. The first task's
    `train.bfloat16` says for all in which precision the base multiplies; where it says nothing, float32 if any task has
    a head. Raises `BadData` for rows, `InvalidRequest` for a method that can't be tuned.
    """
    together = together or Together(save_every=0)
    console = Console(stderr=True, quiet=True)
    prepared = _prepared(tasks, base, library, console)
    jobs = [one.job for one in prepared]
    if len({job.name for job in jobs}) < len(jobs):
        raise InvalidRequest("Two tasks have one name: give each its own.", param="name")
    if not jobs:
        return []
    how = jobs[0].how
    if how.bfloat16 is None and any(job.start.head is not None for job in jobs):
        how = how.model_copy(update={"bfloat16": False})
    with shown(console, {job.name: job.how.steps for job in jobs}, together.tensorboard) as board:

        def see(name: str, progress: Progress) -> None:
            board.see(name, progress)
            if watch is not None:
                watch(name, progress)

        finished, checkpoint = train_together(base, jobs, precision(base, how), together, see, console)
    checkpoint.remove()
    return [
        Tuned(
            ended.name,
            ended.trained,
            ended.values,
            ended.error,
            task.lengths,
            task.begun,
            tuple(task.said.labels or ()),
            task,
        )
        for ended, task in zip(finished, prepared, strict=True)
    ]


def _prepared(
    tasks: Sequence[Task], base: Base | HeadBase, library: Library | None, console: Console
) -> list[Prepared]:
    family = "encoder" if isinstance(base, HeadBase) else family_of(base.model.config)
    beginnings = Beginnings(base, library, console) if isinstance(base, Base) else None
    found = []
    for task in tasks:
        method = task.method
        if isinstance(method, PTuningV2):
            method = headed(method)
        elif not isinstance(method, PromptTuning | PTuning | PrefixTuning | Lora | LoraPrefixTuning):
            method = method_of(method, family)
        if isinstance(method, Headed):
            found.append(head_task(task, method, base))
        elif isinstance(base, HeadBase) or beginnings is None:
            raise no_words(base.label, method.kind)
        else:
            found.append(word_task(task, method, base, beginnings))
    return found
