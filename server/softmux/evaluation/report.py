"""What an evaluation found: plain values, as the page shows them and JSON has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from softmux.evaluation.figures import Drop, Figure
from softmux.evaluation.verdict import Verdict

PAGE_FILE = "evaluation.html"
JSON_FILE = "evaluation.json"


@dataclass(frozen=True, slots=True)
class Way:
    """A figure of the task asked in one way. `change` is by how much it falls against the same rows asked plainly (or,
    where `others` is true, against the other rows); `note` says how it was asked, `sample` shows it."""

    name: str
    figure: Figure
    change: Drop | None = None
    note: str = ""
    sample: str = ""


@dataclass(frozen=True, slots=True)
class Distance:
    """With so many `tokens` of irrelevant text before the input: the figure, and `gain`, by how much the learned
    numbers raise the right answer's log probability, nats a token (None of a head)."""

    tokens: int
    figure: Figure
    change: Drop
    gain: float | None


@dataclass(frozen=True, slots=True)
class Nearest:
    """The vocabulary's tokens that a learned vector lies next to, with their cosines."""

    vector: int
    tokens: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Mistake:
    text: str
    expected: str
    said: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`rows`: to train, to validate, held out; `trained_lengths` in tokens of the input. `overall` is of `measured`
    rows, `compared` of the same sample of them by other means, the task's own first. Where a task has a few fixed
    answers `compared_labels` has the share of rows whose likeliest answer is right."""

    task: str
    title: str
    base: str
    method: str
    digest: str
    parameters: int
    virtual_tokens: int
    data: str
    metric: str
    metric_words: str
    rows: tuple[int, int, int]
    measured: int
    trained_lengths: tuple[int, int]
    shots: int
    overall: Figure
    compared: tuple[Way, ...]
    compared_labels: tuple[Way, ...]
    lengths: tuple[Way, ...]
    beyond: tuple[Way, ...]
    changes: tuple[Way, ...]
    domain: tuple[Way, ...]
    distances: tuple[Distance, ...]
    around: Way | None
    nearest: tuple[Nearest, ...]
    mistakes: tuple[Mistake, ...]
    notes: tuple[str, ...]
    verdict: Verdict
    seed: int
    asked: int
    seconds: float
    device: str
    version: str


def as_json(found: Evaluation) -> dict[str, Any]:
    told: dict[str, Any] = asdict(found)
    return told
