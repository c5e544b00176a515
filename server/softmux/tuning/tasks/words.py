"""A task that generates, from Python."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from softmux.errors import InvalidRequest
from softmux.formats.softmux_json import SoftmuxJson
from softmux.tuning.bases.base import Base
from softmux.tuning.data.examples import BadData, Example, checked
from softmux.tuning.data.rows import Row, encode
from softmux.tuning.data.split import split
from softmux.tuning.evaluate import Figures, evaluate
from softmux.tuning.learned.methods import Learned, begin, lent, put, start_of
from softmux.tuning.recipes.method import MethodRecipe
from softmux.tuning.recipes.recipe import Evaluate, PTuning
from softmux.tuning.starts.beginning import Beginner, Beginnings
from softmux.tuning.starts.transfer import saved_method
from softmux.tuning.tasks.pairs import numbered
from softmux.tuning.tasks.task import Pairs, Prepared, Task, Words
from softmux.tuning.training.job import Finished


def word_task(task: Task, method: Words, base: Base, beginnings: Beginnings) -> Prepared:
    """Raises `BadData` for rows, `InvalidRequest` for a method that can't be tuned."""
    base.check(method, task.train)
    given, test = examples_of(task.rows, task.name), None
    if task.validation is None:
        parts = split(given, task.train.validation_rows)
        train, validation, test = parts.train, parts.validation, parts.test
    else:
        train, validation = tuple(given), tuple(examples_of(task.validation, f"{task.name}'s validation"))

    def fresh(some: MethodRecipe) -> Learned:
        torch.manual_seed(task.train.seed)
        return begin(cast(Words, some), base, task.labels)

    end_id = base.end_id if task.train.end_token else None

    def encoded(some: Sequence[Example], learned: Learned) -> list[Row]:
        found = [encode(example, learned.layout, base.encoder, base.vocab_size, end_id) for example in some]
        base.check_room(some, found, learned.prefix)
        return found

    with lent(fresh(method)) as learned:
        rows, kept = encoded(train, learned), encoded(validation, learned)
        start = start_of(learned)
    begun = beginnings.of(Beginner(task.name, method, task.train, Path(), fresh, kept, learned.prefix), start)
    lengths = min(row.prompt_tokens for row in rows), max(row.prompt_tokens for row in rows)

    @contextmanager
    def opened(ended: Finished) -> Iterator[Learned]:
        with lent(begin(cast(Words, saved_method(method, begun.origin)), base, task.labels)) as learned:
            put(learned, begun.start.folded(ended.values))
            learned.train(False)
            yield learned

    def figures(learned: Any, examples: Sequence[Example], how: Evaluate) -> Figures:
        asked = [encode(one, learned.layout, base.encoder, base.vocab_size, None) for one in examples]
        base.check_room(examples, asked, learned.prefix, how.max_tokens)
        return evaluate(base, learned, examples, how, learned.layout, ())

    return Prepared(
        begun.job(task.name, rows, kept, task.train, learned.prefix),
        lengths,
        begun.words,
        SoftmuxJson(
            template=method.template if isinstance(method, PTuning) else None,
            trained_lengths=list(lengths),
            notes=f"Begun from {begun.words}." if begun.words else None,
        ),
        test,
        examples_of,
        opened,
        figures,
    )


def examples_of(pairs: Pairs, name: str) -> list[Example]:
    """Raises `BadData`."""

    def each() -> Iterator[Example]:
        for number, text, answer in numbered(pairs, name, "answer"):
            if not isinstance(answer, str):
                raise BadData(
                    f"the answer is {answer!r}, and a task that generates is taught by a text",
                    file=name, row=number, column="answer",
                )  # fmt: skip
            yield Example(text, answer, name, number)

    return checked(each(), classes=False)


def no_words(base: str, kind: str) -> InvalidRequest:
    """What is said of a method that generates, on an encoder."""
    return InvalidRequest(
        f"{base} is an encoder, and {kind} so given is tuned on what generates: give PTuningV2, or a config of PEFT's "
        "with task_type SEQ_CLS or TOKEN_CLS, which put it under a head.",
        param="method",
    )
