"""What is tried of a task: which rows, changed how, asked of whom."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from softmux.evaluation.changes import CHANGES, behind, in_front, joined
from softmux.evaluation.filler import filler
from softmux.evaluation.task import Task, Trial
from softmux.tuning.data.examples import Example

DISTANCES = (128, 512, 1024)
"""Tokens of irrelevant text before an input."""
AROUND = 256
"""Tokens of it, half before and half after the input."""
BEYOND = (1.5, 3.0)
"""How many times as long as the longest input of the training."""
BUCKETS = 5
BUCKET_ROWS = 20
"""The fewest rows of a bucket of lengths, or of a part of the rows that is looked at by itself."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A task's trials. `sample` are the rows that everything but the main figure is tried on, `few` a part of them, for
    what is long; `shots` the examples that the bare model is given; `beyond` and `distances` name trials by their
    lengths in tokens; `filled`: longer inputs are made with irrelevant text, as answers are not a few fixed ones."""

    trials: dict[str, Trial]
    sample: tuple[Example, ...]
    few: tuple[Example, ...]
    shots: tuple[Example, ...]
    changed: dict[str, tuple[Example, ...]]
    """By the change's name the rows as they were, in its trial's order."""
    beyond: tuple[tuple[int, str], ...]
    distances: tuple[tuple[int, str], ...]
    around: str | None
    filled: bool


def plan(task: Task, elsewhere: Sequence[Example]) -> Plan:
    """`elsewhere` are rows of the same task from another domain."""
    how = task.recipe.evaluate
    sample = tuple(sorted(task.parts.test, key=by_hash)[: how.report_rows])
    few = sample[: max(BUCKET_ROWS, len(sample) // 2)]
    trials = {"plain": Trial("plain", "tuned", "metric", task.parts.test)}

    def add(trial: Trial) -> str:
        trials[trial.name] = trial
        return trial.name

    shots = _shots(task)
    if task.manifest.head is None:
        for name, before in (("bare", ""), ("few-shot", _shown(task, shots))):
            if before or name == "bare":
                add(Trial(name, "bare", "metric", sample, before))
                if task.labels:
                    add(Trial(f"{name}, labels", "bare", "labels", sample, before))
        if task.labels:
            add(Trial("tuned, labels", "tuned", "labels", sample))
    changed: dict[str, tuple[Example, ...]] = {}
    for change in CHANGES:
        pairs = [(x, change.make(x, how.seed)) for x in sample]
        kept = [(x, y) for x, y in pairs if _can_be_asked(task, x, y)]
        if kept:
            changed[change.name] = tuple(x for x, _ in kept)
            add(Trial(change.name, "tuned", "metric", [y for _, y in kept]))
    if others := [x for x in sorted(elsewhere, key=by_hash) if task.fits(x)]:
        add(Trial("elsewhere", "tuned", "metric", others[: how.report_rows]))
    beyond = []
    for times in BEYOND:
        least = int(task.trained[1] * times)
        if rows := _longer(task, few, least):
            beyond.append((least, add(Trial(f"beyond {least}", "tuned", "metric", rows))))
    distances = _far(task, few, add)
    around = _around(task, few, add)
    filled = not task.classes and task.manifest.head is None
    return Plan(trials, sample, few, shots, changed, tuple(beyond), tuple(distances), around, filled)


def _can_be_asked(task: Task, before: Example, after: Example) -> bool:
    """Whether a change has changed the row, and left something of it (of its labels, too) that the context holds."""
    left = after.text.strip() and (after.spans or not before.spans)
    return bool(left) and after.text != before.text and task.fits(after)


def _far(task: Task, few: Sequence[Example], add: Callable[[Trial], str]) -> list[tuple[int, str]]:
    """The trials with irrelevant text before the input, by its tokens; the first is without any."""
    longest = max(map(task.length, few))
    room = task.room(_GAP) - longest
    lengths = [0, *(distance for distance in DISTANCES if distance <= room)]
    if not lengths[1:] and room >= _LEAST_ROOM:
        lengths.append(room // 2)  # a short context: what there is
    found = []
    for length in lengths:
        text = filler(task.encoder, length) if length else ""
        rows = [in_front(x, text) if text else x for x in few]
        name = f"far {length}"
        add(Trial(name, "tuned", "metric", rows))
        if task.manifest.head is None:
            add(Trial(f"{name}, tuned", "tuned", "answer", rows))
            add(Trial(f"{name}, bare", "bare", "answer", rows))
        found.append((length, name))
    return found


def _around(task: Task, few: Sequence[Example], add: Callable[[Trial], str]) -> str | None:
    """The trial with irrelevant text on both sides of the input, where the context has room for it."""
    rows = few[: max(BUCKET_ROWS, len(few) // 2)]
    if max(map(task.length, rows)) + AROUND > task.room(_GAP):
        return None
    half = filler(task.encoder, AROUND // 2)
    return add(Trial("around", "tuned", "metric", [behind(in_front(x, half), half) for x in rows]))


_GAP = 24
"""Tokens that an empty line, and a sentence that does not end where it should, may take."""
_LEAST_ROOM = 40


def _longer(task: Task, rows: Sequence[Example], least: int) -> list[Example]:
    """Each row made at least so long: by rows of the same answer after it (whatever is true of each is true of all), or
    where answers are not a few fixed ones by irrelevant text before it. Fewer rows where the context is too short."""
    if not task.classes and task.manifest.head is None:
        text = filler(task.encoder, least)
        made = [in_front(x, text) for x in rows]
        return [x for x in made if least < task.length(x) <= task.room()]
    found, token = [], task.manifest.head == "token"
    for number, row in enumerate(rows):
        others = [x for x in (*rows[number + 1 :], *rows[:number]) if token or x.answer == row.answer]
        chosen, length = [row], task.length(row)
        for other in others:
            if length > least:
                break
            chosen.append(other)
            length += task.length(other)
        whole = joined(chosen)
        if least < task.length(whole) <= task.room():
            found.append(whole)
    return found


def buckets(task: Task, rows: Sequence[Example]) -> list[tuple[int, int, list[int]]]:
    """(fewest tokens, most, the rows' numbers) of parts that hold like many rows, by length; those beyond what was
    trained on are a part of their own."""
    most = task.trained[1]
    order = sorted((task.length(x), i) for i, x in enumerate(rows))
    within = [(length, i) for length, i in order if length <= most]
    parts = max(1, min(BUCKETS, len(within) // BUCKET_ROWS))
    cuts = [len(within) * n // parts for n in range(parts + 1)]
    for n in range(1, parts):  # rows of one length are of one part
        while 0 < cuts[n] < len(within) and within[cuts[n]][0] == within[cuts[n] - 1][0]:
            cuts[n] += 1
    groups = [within[a:b] for a, b in pairwise(sorted(set(cuts))) if b > a]
    groups += [[(length, i) for length, i in order if length > most]]
    return [(group[0][0], group[-1][0], [i for _, i in group]) for group in groups if group]


def least_alike(task: Task) -> tuple[list[int], list[int], tuple[float, float]] | None:
    """The fifth of the test rows with the largest share of words that no training row has, the other rows, and both
    shares. None where there are too few rows, or all words are known."""
    known = {word for x in task.parts.train for word in x.text.lower().split()}

    def strange(example: Example) -> float:
        words = set(example.text.lower().split())
        return sum(word not in known for word in words) / max(1, len(words))

    shares = [strange(x) for x in task.parts.test]
    order = sorted(range(len(shares)), key=lambda i: (-shares[i], by_hash(task.parts.test[i])))
    count = len(order) // 5
    if count < BUCKET_ROWS or not shares[order[count - 1]]:
        return None
    strangers, others = order[:count], order[count:]
    mean = [sum(shares[i] for i in some) / len(some) for some in (strangers, others)]
    return strangers, others, (mean[0], mean[1])


def _shots(task: Task) -> tuple[Example, ...]:
    """Training rows to show the bare model: in turn of each answer there is, of middle length or shorter, by hash."""
    wanted = max(task.recipe.evaluate.shots, len(task.labels)) if task.recipe.evaluate.shots else 0
    if task.manifest.head is not None or not wanted:
        return ()
    middle = sorted(len(x.text) for x in task.parts.train)[len(task.parts.train) // 2]
    rows = sorted((x for x in task.parts.train if len(x.text) <= middle), key=by_hash)
    by_answer: dict[str, list[Example]] = {label: [] for label in task.labels} or {"": []}
    for x in rows:
        by_answer[x.answer if task.labels else ""].append(x)
    turns = [x for turn in range(wanted) for some in by_answer.values() for x in some[turn : turn + 1]]
    longest = max((len(task.bare(x.text)) for x in task.parts.test), default=0)
    for count in range(min(wanted, len(turns)), 0, -1):
        tokens = len(task.encoder.encode(_shown(task, turns[:count]), add_special_tokens=True))
        if tokens + longest + task.recipe.evaluate.max_tokens <= task.spec.context_length:
            return tuple(turns[:count])
    return ()


def _shown(task: Task, shots: Sequence[Example]) -> str:
    """As the bare model sees them: each text with its answer, and an empty line."""
    return "".join(f"{task.words(x.text)}{x.answer}\n\n" for x in shots)


def by_hash(example: Example) -> bytes:
    """Rows by the hash of their text: the same everywhere."""
    return hashlib.sha256(f"order {example.text}".encode()).digest()
