"""A task with a head, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from softmux.errors import InvalidRequest
from softmux.formats.peft_types import takes_prefix
from softmux.formats.softmux_json import MAX_LABEL, MAX_LABELS, SoftmuxJson
from softmux.tuning.bases.base import Base
from softmux.tuning.bases.head_base import HeadBase, head_base_of
from softmux.tuning.bases.head_rows import encode_row, labelled
from softmux.tuning.data.examples import BadData, Example, Span, checked, known, several
from softmux.tuning.data.rows import HeadRow
from softmux.tuning.data.split import split
from softmux.tuning.evaluate import Figures, score_labels
from softmux.tuning.frozen.encoder import positions_of
from softmux.tuning.learned.headed import Headed
from softmux.tuning.learned.heads import HeadLearned, begin_head, head_start, lent_head, put_head
from softmux.tuning.recipes.recipe import Evaluate
from softmux.tuning.tasks.pairs import numbered
from softmux.tuning.tasks.task import Pairs, Prepared, Task
from softmux.tuning.training.job import Finished, Job

_SPANS = "labelled words"


def head_task(task: Task, method: Headed, over: Base | HeadBase) -> Prepared:
    """Raises `BadData` for rows, `InvalidRequest` for a method that can't be tuned."""
    base = _checked_base(over)
    if task.train.dampening:
        raise InvalidRequest(
            "train.dampening weighs an input's tokens beside an answer's, and a head says no tokens: leave it out.",
            param="train.dampening",
        )
    token = method.head == "token"
    given, test = _examples(task.rows, task.name, token), None
    apart = [] if task.validation is None else _examples(task.validation, f"{task.name}'s validation", token)
    labels = _labels(task, [*given, *apart], token)
    train, validation = tuple(given), tuple(apart)
    if task.validation is None:
        parts = split(given, task.train.validation_rows)
        train, validation, test = parts.train, parts.validation, parts.test
    most = _positions(over)

    def encoded(some: Sequence[Example]) -> list[HeadRow]:
        rows = []
        for example in some:
            row = encode_row(example, base, method.head, labels, method.virtual_tokens - method.prefix)
            if most is not None and row.length + method.prefix > most:
                raise BadData(
                    f"its {row.length + method.prefix} tokens, learned ones included, have no room in the {most} "
                    f"positions that {base.label} has: shorten the text, or leave the row out",
                    file=example.file,
                    row=example.row,
                )
            rows.append(row)
        return rows

    rows = labelled("train", encoded(train), task.name)
    kept = labelled("validation", encoded(validation), task.name)
    torch.manual_seed(task.train.seed)
    with lent_head(begin_head(method, base, len(labels))) as learned:
        start = head_start(learned, method.virtual_tokens)
    lengths = min(row.prompt_tokens for row in rows), max(row.prompt_tokens for row in rows)

    @contextmanager
    def opened(ended: Finished) -> Iterator[HeadLearned]:
        with lent_head(begin_head(method, base, len(labels))) as learned:
            put_head(learned, ended.values)
            yield learned

    def examples(pairs: Pairs, name: str) -> list[Example]:
        found = _examples(pairs, name, token)
        _check_labels(found, labels, token)
        return found

    def figures(learned: Any, some: Sequence[Example], _: Evaluate) -> Figures:
        asked = labelled("given", encoded(some), task.name)
        meant = [row.meant(method.head) for row in asked]
        return Figures(len(asked), score_labels(method.head, learned.predict(asked), meant))

    said = SoftmuxJson(labels=labels, base_fingerprint=base.fingerprint, trained_lengths=list(lengths))
    return Prepared(Job(task.name, start, rows, kept, task.train), lengths, "", said, test, examples, opened, figures)


def _checked_base(over: Base | HeadBase) -> HeadBase:
    base = head_base_of(over) if isinstance(over, Base) else over
    if base.family == "encoder" and not takes_prefix(base.model.config.model_type):
        raise InvalidRequest(
            f"{base.label} is of type {base.model.config.model_type}, and tasks with a head are tuned on decoders and "
            "on encoders that take a prefix: BERT, RoBERTa, XLM-R, ELECTRA and models of their build.",
            param="base",
        )
    return base


def _positions(over: Base | HeadBase) -> int | None:
    return over.positions if isinstance(over, Base) else positions_of(over.model)[1]


def _examples(pairs: Pairs, name: str, token: bool) -> list[Example]:
    def each() -> Iterator[Example]:
        for number, text, label in numbered(pairs, name, _SPANS if token else "label"):
            if token:
                yield Example(text, _SPANS, name, number, _spans(text, label, name, number))
                continue
            if not isinstance(label, str):
                raise BadData(
                    f"the label is {label!r}, and a sequence's is a string: softmux trains no regression, and no head "
                    "of several labels at once",
                    file=name, row=number, column="label",
                )  # fmt: skip
            yield Example(text, label, name, number)

    return checked(each(), classes=True, columns=("text", "label"))


def _spans(text: str, label: object, name: str, number: int) -> tuple[Span, ...]:
    found: list[Span] = []
    for one in label if isinstance(label, list | tuple) else [label]:
        match one:
            case (int(start), int(end), str(said)) if 0 <= start < end <= len(text) and said.strip():
                found.append(Span(start, end, said.strip()))
            case _:
                raise BadData(
                    f"{one!r} is no (start, end, label) with characters of the text, 0 ≤ start < end ≤ {len(text)}",
                    file=name, row=number, column="label",
                )  # fmt: skip
    found.sort(key=lambda span: span.start)
    for one, other in pairwise(found):
        if other.start < one.end:
            raise BadData(
                f"({one.start}, {one.end}, {one.label!r}) and ({other.start}, {other.end}, {other.label!r}) share "
                "characters, and a word has one label: keep one of them",
                file=name, row=number, column="label",
            )  # fmt: skip
    return tuple(found)


def _labels(task: Task, examples: Sequence[Example], token: bool) -> list[str]:
    """The head's, in the order of its outputs."""
    if task.labels:
        named = _named(task.labels)
        _check_labels(examples, named, token)
        return named
    return _kept(_in_the_rows(task, examples, token))


def _named(given: Sequence[str]) -> list[str]:
    """Those that a task gives: without the spaces around them, which a head's labels have not. Raises
    `InvalidRequest`."""
    if isinstance(given, str) or not all(isinstance(label, str) and label.strip() for label in given):
        raise InvalidRequest(f'labels is a list of strings, as ["no", "yes"], and not {given!r}.', param="labels")
    found = [label.strip() for label in given]
    if twice := sorted({label for label in found if found.count(label) > 1}):
        raise InvalidRequest(
            f"labels names {', '.join(map(repr, twice))} twice, spaces around it left out: name each label once.",
            param="labels",
        )
    if len(found) < 2:
        raise InvalidRequest(
            f"labels names {found[0]!r} alone, and a head tells two labels apart at least: name the others.",
            param="labels",
        )
    return _kept(found)


def _kept(labels: list[str]) -> list[str]:
    """Raises `InvalidRequest` for more of them, or longer ones, than softmux.json has room for."""
    if len(labels) > MAX_LABELS or any(len(label) > MAX_LABEL for label in labels):
        raise InvalidRequest(
            f"The {len(labels)} labels have up to {max(map(len, labels))} characters, and a head has at most "
            f"{MAX_LABELS} labels, each of at most {MAX_LABEL} characters: give fewer, or shorter ones.",
            param="labels",
        )
    return labels


def _in_the_rows(task: Task, examples: Sequence[Example], token: bool) -> list[str]:
    if not token:
        return sorted({example.answer.strip() for example in several(list(examples), "label")})
    found = sorted({span.label for example in examples for span in example.spans})
    if len(found) < 2:
        raise BadData(
            f"the words' labels are {', '.join(found) or 'none'}; two different ones are needed at least",
            file=task.name, column="label",
        )  # fmt: skip
    return found


def _check_labels(examples: Sequence[Example], labels: Sequence[str], token: bool) -> None:
    if not token:
        list(known(examples, labels, "label"))
        return
    for example in examples:
        for span in example.spans:
            if span.label not in labels:
                raise BadData(
                    f"the label {span.label!r} is none of {', '.join(labels)}",
                    file=example.file, row=example.row, column="label",
                )  # fmt: skip
