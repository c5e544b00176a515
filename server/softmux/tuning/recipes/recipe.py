"""A recipe: everything that decides what a tuning run does, as a TOML file with a closed schema.

task = "sentiment"
[data]       where the rows come from
[method]     what is learned
[train]      how
[evaluate]   what is measured on the held-out rows
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from softmux.demo import DEFAULT, DemoName
from softmux.errors import InvalidRequest
from softmux.tuning.recipes.method import Closed as Closed
from softmux.tuning.recipes.method import Lora as Lora
from softmux.tuning.recipes.method import LoraPrefixTuning as LoraPrefixTuning
from softmux.tuning.recipes.method import MethodRecipe as MethodRecipe
from softmux.tuning.recipes.method import PrefixTuning as PrefixTuning
from softmux.tuning.recipes.method import PromptTuning as PromptTuning
from softmux.tuning.recipes.method import PTuning as PTuning
from softmux.tuning.recipes.method import PTuningV2 as PTuningV2

DEMO_BASE = "demo"
TASK_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"

SourceName = Literal[
    "movie-sentiment",
    "product-sentiment",
    "text-source",
    "person-or-company",
    "capital",
    "address",
    "address-tags",
    "docstring-summary",
    "file",
    "hub",
]
Metric = Literal["exact", "starts_with", "json_fields", "rouge_l", "accuracy", "token_f1"]
R = TypeVar("R", bound=BaseModel)
_OF_HEADS: dict[str, Metric] = {"sequence": "accuracy", "token": "token_f1"}


class Data(Closed):
    """`source` is a shipped one, `file`: a CSV, JSONL or Parquet file at `path` (relative to the recipe) with two
    columns, or `hub`: such a file in the data set `hub` of the Hugging Face hub."""

    source: SourceName
    """Where the rows come from: `file`, `hub`, or one that the tasks in `adapters/` were made of."""
    path: Path | None = None
    """`.csv` with a header line, `.jsonl` or `.parquet`: relative to the recipe, or within the data set."""
    hub: str | None = None
    """The data set's id, `owner/name`."""
    prompt: str = "prompt"
    """The column of what a user sends."""
    answer: str = "answer"
    """The column of what should come back, its leading space included; of a head, the label."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """A row to train or validate on that is longer than this, answer included, or than the base has positions for, is
    left out; test rows never are: one that the base has no room for is named."""

    extra_rows: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Made-up rows to train on beside the real ones, for a source that can make them: `address`, `address-tags`."""

    def from_below(self) -> Data:
        """The same rows, as a recipe names them that lies in a folder of its recipe's."""
        if self.path is None or self.hub is not None or self.path.is_absolute():
            return self
        return self.model_copy(update={"path": Path("..") / self.path})

    @model_validator(mode="after")
    def _path_for_a_file(self) -> Data:
        if (self.source in ("file", "hub")) != (self.path is not None):
            raise ValueError('path goes with source = "file" or "hub", and only with them')
        if (self.source == "hub") != (self.hub is not None):
            raise ValueError('hub goes with source = "hub", and only with it')
        return self


class Train(Closed):
    """AdamW with a linear warm-up to `learning_rate`, then a linear decay to zero at the last step."""

    steps: Annotated[int, Field(ge=1)]
    """Updates at most."""
    batch_rows: Annotated[int, Field(ge=1)] = 16
    """Rows of an update."""
    learning_rate: Annotated[float, Field(gt=0)]
    """At its highest, after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 100
    """Steps in which the rate rises in a line; at most half of all."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    """The gradient of all that the task learns is cut to this norm."""
    seed: int = 0
    """Of the start and of the order of rows."""
    validate_every: Annotated[int, Field(ge=1)] = 100
    """Steps from one validation to the next; the best step is kept."""
    patience: Annotated[int, Field(ge=1)] = 10
    """Stop after so many validations in a row without a better one."""
    validation_rows: Annotated[int, Field(ge=1)] = 512
    """At most so many; they come out of the training rows, about a tenth of them."""
    end_token: bool = True
    """Whether the end-of-text token is part of every answer, so that the model stops after it."""
    balance: bool = False
    """Draw each answer equally often, whatever its share of the rows. For a task with few, fixed answers."""
    like_lengths: bool = False
    """Batches of rows of like length: less padding, so less to compute."""
    bfloat16: bool | None = None
    """Multiply in bfloat16 while training; measuring on held-out rows stays in float32. By default on a GPU, where a
    task generates; tasks with a head train in float32 unless this says otherwise."""
    dampening: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What the input's own tokens weigh in the loss, where an answer's weigh 1. 0: the answer alone is learned."""
    noise: Annotated[float, Field(ge=0)] = 0.0
    """Uniform noise on the input's embeddings (NEFTune, arXiv 2310.05914), of size noise / sqrt(tokens · width)."""


class Sweep(Closed):
    """What `softmux sweep` tries: every combination of what is listed; what is not listed is as the recipe says. A
    value that a method does not have (an init of a LoRA) makes no further try of it."""

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """By default, where nothing at all is listed: 1e-3 to 3e-1 in six."""
    warmups: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Each one's `train.warmup_steps`."""
    dampenings: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Each one's `train.dampening`. Validation counts answers alone, so that losses compare."""
    virtual_tokens: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = ()
    """Lengths of the soft prompt."""
    inits: tuple[Annotated[str, Field(pattern=r"\S")], ...] = ()
    """Starts: `text`, `sampled`, `labels` and `random` of prompt tuning; anything else is an `init_from`, and
    `residual:` before it makes it a residual over that."""
    methods: tuple[MethodRecipe, ...] = ()
    """Whole method sections, in the place of the recipe's: `[[sweep.methods]]`."""
    seeds: tuple[int, ...] = ()
    """With several, the mean of their validation losses decides."""


class Evaluate(Closed):
    """Greedy generation on the test rows. `exact`: the text is the answer; `starts_with`: it begins with the answer;
    `json_fields`: valid JSON, and F1 over its (name, value) pairs; `rouge_l`: the longest common subsequence of words.
    Of a task with a head, its labels: `accuracy` of sequences, `token_f1` of tokens."""

    metric: Metric = "exact"
    """What is counted on the held-out rows."""
    max_tokens: Annotated[int, Field(ge=1)] = 8
    """Tokens to generate at most."""
    bare: bool = True
    """Whether to measure the same inputs without the learned vectors too."""
    probe: bool = True
    """For a task with a head: whether to measure a linear probe of the same frozen encoder, too."""
    full: Train | None = None
    """For a task with a head: how to train the whole encoder, to measure that, too."""
    report_rows: Annotated[int, Field(ge=1)] = 100
    """Of the report: so many held-out rows are asked in each other way than plainly."""
    shots: Annotated[int, Field(ge=0, le=64)] = 4
    """Of the report: training rows shown to the bare model, one for each of a few fixed answers at least; 0: none."""
    elsewhere: Data | None = None
    """Of the report: rows of the same task from another domain, as a section like `[data]`."""
    seed: int = 0
    """Of the report: of how inputs are changed."""


class Recipe(Closed):
    """`base` is a demo's base model (`smollm2`, for which `demo` stands, or `minilm`), or a folder or hub id; `labels`
    and `notes` go to `softmux.json`. A head's labels are the data's answers, unless `labels` gives them an order."""

    task: Annotated[str, Field(pattern=TASK_PATTERN)]
    """Its name, as `softmux upload` takes it."""
    base: str = DEMO_BASE
    """The base model."""
    title: str = ""
    """The first line of the README that is written."""
    labels: list[str] | dict[str, str] | None = None
    """The answers there may be, or each one's words; a row with another answer is refused."""
    notes: str | None = None
    """For `softmux.json`."""
    data: Data
    """Where the rows come from."""
    method: MethodRecipe
    """What is learned."""
    train: Train
    """How."""
    evaluate: Evaluate = Evaluate()
    """What is measured on the held-out rows."""
    sweep: Sweep = Sweep()
    """What `softmux sweep` tries."""

    @property
    def template(self) -> str | None:
        return self.method.template if isinstance(self.method, PTuning) else None

    @property
    def demo(self) -> DemoName | None:
        """The demo base that `base` names, if it names one."""
        return demo_of(self.base)

    @model_validator(mode="after")
    def _measured_as_learned(self) -> Recipe:
        head = self.method.head if isinstance(self.method, PTuningV2) else None
        if head is not None and self.evaluate.metric != _OF_HEADS[head]:
            raise ValueError(f'a {head} head is measured by evaluate.metric = "{_OF_HEADS[head]}"')
        if head is None and self.evaluate.metric in _OF_HEADS.values():
            raise ValueError(f"{self.method.kind} generates, and {self.evaluate.metric} is of heads")
        if head is not None and self.train.dampening:
            raise ValueError("train.dampening weighs an input's tokens beside an answer's, and a head says no tokens")
        if head is not None and isinstance(self.labels, dict):
            raise ValueError("a head's labels are a list, in the order of its outputs")
        return self


def demo_of(base: str) -> DemoName | None:
    """The demo base that a recipe's `base` names, if it names one."""
    if base == DEMO_BASE:
        return DEFAULT
    return next((name for name in get_args(DemoName) if name == base), None)


def read_recipe(path: Path) -> Recipe:
    """The recipe in the TOML file at `path`. Raises `InvalidRequest`, whose `param` names the field that is wrong."""
    return read_toml(path, Recipe)


def read_toml(path: Path, kind: type[R]) -> R:
    """What the TOML file at `path` says, by a closed schema. Raises as `read_recipe` does."""
    try:
        said = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidRequest(f"There is no recipe at {path}.", param="recipe") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is no TOML: {error}.", param="recipe") from error
    try:
        return kind.model_validate(said)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(f"{path}, {field or 'the recipe'}: {first['msg']}.", param=field or None) from error


def to_toml(recipe: Recipe) -> str:
    """What a recipe says, as TOML: `read_recipe` reads the same recipe from it. What it leaves to defaults is left."""
    said = recipe.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return "\n".join(_toml(said, ())).strip() + "\n"


def _toml(section: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    tables = {name: value for name, value in section.items() if isinstance(value, dict)}
    for name, value in section.items():
        if name not in tables:
            yield f"{_key(name)} = {json.dumps(value, ensure_ascii=False)}"
    for name, value in tables.items():
        yield ""
        yield f"[{'.'.join(map(_key, (*path, name)))}]"
        yield from _toml(value, (*path, name))


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
