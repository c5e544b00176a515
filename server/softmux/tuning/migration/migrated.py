"""What came of a migration: by task as a table, as JSON, and as a page; and which tasks want looking at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.markup import escape
from rich.table import Table

from softmux.formats.folder import Adapter
from softmux.tuning.evaluate import Figures
from softmux.tuning.migration.likeness import Likeness
from softmux.tuning.training.trainer import Trained

AGREES = 0.9
"""A task whose answers are the old ones less often than that wants looking at."""
KEEPS = 0.97
"""So does one that keeps less than this share of its old held-out figure."""
FEW = 20
"""And one that was measured on fewer held-out inputs than these."""

_COLUMNS = ("task", "method", "inputs", "agrees", "unmigrated", "figure", "old", "migrated", "unmigrated", "look at")
_UNTOLD = "–"


@dataclass(frozen=True, slots=True)
class Moved:
    """A migrated task: `adapter` and `files` are its new version's, `was` the old version's number (None: a folder's).
    `begun`: what it was trained from, in words. `unmigrated`: the old prompt itself on the new base, None where it has
    no place there. Figures are of labelled rows, None where there are none."""

    task: str
    was: int | None
    adapter: Adapter
    files: Mapping[str, bytes]
    source: str
    rows: tuple[int, int, int]
    answers: int
    begun: str
    trained: Trained
    likeness: Likeness
    unmigrated: Likeness | None
    old_figures: Figures | None
    figures: Figures | None
    unmigrated_figures: Figures | None
    published: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> str | None:
        return next(iter(self.old_figures.values)) if self.old_figures is not None else None

    @property
    def attention(self) -> tuple[str, ...]:
        """Why it wants looking at; nothing where it does not."""
        found = []
        if self.likeness.same_answer < AGREES:
            found.append(f"agrees with the old in {self.likeness.same_answer:.2f} of answers, below {AGREES:g}")
        old, new = _first(self.old_figures), _first(self.figures)
        if old is not None and new is not None and new < KEEPS * old:
            found.append(f"{self.metric} is {new:.3f}, below {KEEPS:g} of the old {old:.3f}")
        if self.answers < 2:
            found.append("the old prompt gave one and the same answer to all inputs: give it inputs of its own")
        if self.likeness.rows < FEW:
            found.append(f"{self.likeness.rows} held-out inputs are few: give it more")
        return (*found, *self.notes)


@dataclass(frozen=True, slots=True)
class Left:
    """A task that was not migrated, and why."""

    task: str
    was: int | None
    why: str


@dataclass(frozen=True, slots=True)
class Migration:
    """Of all tasks. `same_words`: learned from distributions over tokens, not from texts; `near`: the mean cosine of
    the bases' embeddings."""

    old: str
    new: str
    old_fingerprint: str
    new_fingerprint: str
    same_words: bool
    near: float
    moved: tuple[Moved, ...]
    left: tuple[Left, ...]
    seconds: float
    device: str

    def told(self, task: str, *, published: int | None = None, note: str | None = None) -> Migration:
        """With what became of a task behind its training."""
        return replace(
            self,
            moved=tuple(
                replace(one, published=published, notes=(*one.notes, note) if note else one.notes)
                if one.task == task
                else one
                for one in self.moved
            ),
        )


def figures(found: Migration) -> dict[str, Any]:
    """For `--json`, and the report's file."""
    return {
        "from": found.old,
        "to": found.new,
        "from_fingerprint": found.old_fingerprint,
        "to_fingerprint": found.new_fingerprint,
        "learned_from": "distributions" if found.same_words else "answers",
        "embeddings_cosine": round(found.near, 4),
        "seconds": round(found.seconds, 1),
        "device": found.device,
        "tasks": [
            {
                "task": one.task,
                "method": one.adapter.manifest.method,
                "old_version": one.was,
                "version": one.published,
                "digest": one.adapter.manifest.digest,
                "inputs": one.source,
                "rows": {"train": one.rows[0], "validation": one.rows[1], "held_out": one.rows[2]},
                "begun_from": one.begun,
                "steps": len(one.trained.losses),
                "best_step": one.trained.best_step,
                "agreement": asdict(one.likeness),
                "unmigrated_agreement": None if one.unmigrated is None else asdict(one.unmigrated),
                "metric": one.metric,
                "old": _values(one.old_figures),
                "migrated": _values(one.figures),
                "unmigrated": _values(one.unmigrated_figures),
                "attention": list(one.attention),
            }
            for one in found.moved
        ],
        "left": [asdict(one) for one in found.left],
    }


def table(found: Migration) -> Table:
    shown = Table(box=None, pad_edge=False)
    for title in _COLUMNS:
        shown.add_column(title)
    for row in _rows(found.moved):
        shown.add_row(*map(escape, row))
    return shown


def page(found: Migration) -> str:
    """Markdown."""
    how = "the old base's distributions over tokens" if found.same_words else "the old base's answers, as text"
    lines = [
        f"# From {found.old} to {found.new}",
        "",
        f"{len(found.moved)} tasks migrated, {len(found.left)} left, in {found.seconds:.0f} s on {found.device}. "
        f"Learned from {how}; the embeddings of the two bases have a mean cosine of {found.near:.3f}.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        f"|{' --- |' * len(_COLUMNS)}",
        *(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in _rows(found.moved)),
        "",
        "*agrees*: the share of held-out inputs whose greedy answer is the old one; *figure*: what is measured on rows "
        "with answers, with the old prompt on the old base, the migrated one, and the old prompt itself on the new "
        f"base (*unmigrated*; {_UNTOLD} where it has no place there). A task wants looking at where it agrees in less "
        f"than {AGREES:g}, keeps less than {KEEPS:g} of its old figure, or was measured on fewer than {FEW} inputs.",
    ]
    if found.left:
        lines += ["", "## Left", "", *(f"- `{one.task}`: {one.why}." for one in found.left)]
    return "\n".join(lines) + "\n"


def _rows(moved: Sequence[Moved]) -> list[tuple[str, ...]]:
    return [
        (
            one.task,
            one.adapter.manifest.method,
            one.source,
            f"{one.likeness.same_answer:.3f}",
            _UNTOLD if one.unmigrated is None else f"{one.unmigrated.same_answer:.3f}",
            one.metric or _UNTOLD,
            *(_number(_first(figure)) for figure in (one.old_figures, one.figures, one.unmigrated_figures)),
            "; ".join(one.attention),
        )
        for one in moved
    ]


def _first(held: Figures | None) -> float | None:
    return None if held is None else next(iter(held.values.values()))


def _values(held: Figures | None) -> dict[str, Any] | None:
    return None if held is None else {"rows": held.rows, **held.values}


def _number(value: float | None) -> str:
    return _UNTOLD if value is None else f"{value:.3f}"
