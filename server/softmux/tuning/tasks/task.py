"""A task to tune from Python, and what a run needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from softmux.formats.softmux_json import SoftmuxJson
from softmux.tuning.data.examples import Example
from softmux.tuning.evaluate import Figures
from softmux.tuning.recipes.recipe import (
    Evaluate,
    Lora,
    LoraPrefixTuning,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    Train,
)
from softmux.tuning.training.job import Finished, Job
from softmux.tuning.write import Saved

Words = PromptTuning | PTuning | PrefixTuning | Lora | LoraPrefixTuning
"""Methods of a task that generates."""
Label = str | Sequence[tuple[int, int, str]]
"""What should come back: a text or a sequence's label; or the labelled words of a text, each from a character to the
one behind its last."""
Pairs = Iterable[tuple[str, Label]]


@dataclass(frozen=True, slots=True)
class Task:
    """A task to tune. `method` is a recipe's method or one of PEFT's configs, whose `task_type` says whether it
    generates or has a head.

    `rows` are (what a user sends, what should come back, its leading space included); of a sequence head (text, label),
    of a token head (text, [(start, end, label), …]) with characters of the text. Without `validation` about a tenth of
    the rows validate, by a hash of their text; those whose hash makes them test rows are then neither trained nor
    selected on. `labels` are words that vectors may begin as, or a head's labels in the order of its outputs."""

    name: str
    rows: Pairs
    method: Words | PTuningV2 | Any
    train: Train = field(default_factory=lambda: Train(steps=500, learning_rate=1e-2))
    validation: Pairs | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task that can run. `opened` is what was learned, within PEFT and the base; `figures` are those of other rows
    under it. `test`: the rows that were held out, None where the task's validation rows were given."""

    job: Job
    lengths: tuple[int, int]
    begun: str
    said: SoftmuxJson
    test: Sequence[Example] | None
    examples: Callable[[Pairs, str], list[Example]]
    opened: Callable[[Finished], AbstractContextManager[Saved]]
    figures: Callable[[Any, Sequence[Example], Evaluate], Figures]
