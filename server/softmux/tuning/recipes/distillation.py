"""A recipe of `softmux distill`: a long prompt, and the short soft prompt that is to answer as it does.

task = "tickets"
[teacher]    the long prompt: text, or an adapter
[inputs]     what both are asked
[method]     what is learned
[train]      how
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from softmux.demo import DemoName
from softmux.tuning.recipes.recipe import (
    DEMO_BASE,
    TASK_PATTERN,
    Closed,
    PrefixTuning,
    PromptTuning,
    PTuning,
    SourceName,
    Train,
    demo_of,
    read_toml,
)

INPUT = "{input}"


class Teacher(Closed):
    """The base with a long prompt. It is given as `text`, as a `file` of text, or as an `adapter`; it answers every
    input, and these answers are what is learned from: at each of their tokens the student's distribution over the whole
    vocabulary is drawn to the teacher's. What all its inputs begin with is read once, so `{input}` is best near the
    end of a text."""

    text: str | None = None
    """The long prompt, with `{input}` once, where a user's text goes."""
    file: Path | None = None
    """The same, as a UTF-8 file: relative to the recipe."""
    adapter: Path | None = None
    """The folder of a prompt tuning or P-tuning adapter for the same base, relative to the recipe."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 32
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.0
    """0: its answers are greedy. Above: those to train on are sampled so; the held-out ones are always greedy."""

    @model_validator(mode="after")
    def _one(self) -> Teacher:
        if sum(given is not None for given in (self.text, self.file, self.adapter)) != 1:
            raise ValueError("give one of text, file and adapter")
        if self.text is not None and self.text.count(INPUT) != 1:
            raise ValueError(f"text must hold {INPUT} once, where a user's text goes")
        return self


class Inputs(Closed):
    """What teacher and student are asked: a file's column, a shipped source's texts, or such as the base makes up."""

    path: Path | None = None
    """`.csv` with a header line, `.jsonl` or `.parquet`, relative to the recipe."""
    column: str = "prompt"
    """The file's column of what a user sends."""
    source: SourceName | None = None
    """Or the texts of a shipped source, as in a recipe's `[data]`; their answers are not looked at."""
    generate: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """So many different texts are sampled from the bare base, by `train.seed`: each the first line that it writes."""
    instruction: str | None = None
    """The text that the base goes on from to make an input; without, it begins with nothing."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of that sampling."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 64
    """Tokens of an input that is generated, at most."""

    @model_validator(mode="after")
    def _one(self) -> Inputs:
        if sum(given is not None for given in (self.path, self.source, self.generate)) != 1:
            raise ValueError("give one of path, source and generate")
        if self.source in ("file", "hub"):
            raise ValueError("a file goes by its path alone")
        if self.generate is None and self.instruction is not None:
            raise ValueError("instruction goes with generate, and only with it")
        return self


class Distillation(Closed):
    """`base` is `demo`, a demo's base model, or a folder or hub id, as in a recipe of `softmux tune`."""

    task: Annotated[str, Field(pattern=TASK_PATTERN)]
    """Its name, as `softmux push` takes it."""
    base: str = DEMO_BASE
    """The base model, the teacher's and the student's."""
    title: str = ""
    """The first line of the README that is written."""
    notes: str | None = None
    """For `softmux.json`."""
    teacher: Teacher
    """The long prompt."""
    inputs: Inputs
    """What both are asked."""
    method: Annotated[PromptTuning | PTuning | PrefixTuning, Field(discriminator="kind")]
    """The student: `prompt_tuning`, `p_tuning` or `prefix_tuning`, as in a recipe of `softmux tune`."""
    train: Train
    """How, as there; `dampening` and `balance` have no meaning here."""

    @property
    def demo(self) -> DemoName | None:
        """The demo base that `base` names, if it names one."""
        return demo_of(self.base)

    @model_validator(mode="after")
    def _learned_from_a_teacher(self) -> Distillation:
        if self.train.dampening or self.train.balance:
            raise ValueError("train.dampening and train.balance are of rows with given answers: leave them out")
        if not isinstance(self.method, PTuning) and self.method.init_from is not None:
            raise ValueError("method.init_from is of softmux tune: a student begins by its own init")
        if isinstance(self.method, PromptTuning) and self.method.init == "labels":
            raise ValueError('method.init = "labels" needs labels, and a teacher\'s answers have none')
        return self


def read_distillation(path: Path) -> Distillation:
    """The recipe in the TOML file at `path`. Raises `InvalidRequest`, whose `param` names the field that is wrong."""
    return read_toml(path, Distillation)
