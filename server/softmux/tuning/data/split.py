"""Which rows are held out: decided by a row's text alone, so that it is the same everywhere and for ever.

The test rows are those whose `int(sha256(text).hexdigest(), 16) % 10 == 0`: never trained on, never selected on. The
validation rows, on which the best step is picked, come out of the others by the next digit of the same number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from softmux.errors import InvalidRequest
from softmux.tuning.data.examples import Example


@dataclass(frozen=True, slots=True)
class Split:
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]


def is_test(text: str) -> bool:
    return _number(text) % 10 == 0


def is_validation(text: str) -> bool:
    """Of the rows that are not test rows."""
    return _number(text) // 10 % 10 == 0


def is_held_back(text: str) -> bool:
    """Whether a row may be a test or a validation row: nothing to train on may be made from it, or equal it."""
    return is_test(text) or is_validation(text)


def split(examples: Iterable[Example], validation_rows: int) -> Split:
    """The three parts, each in the order given. Of the validation rows the `validation_rows` first by hash are kept, so
    that they do not follow the files' order; the others are trained on.

    Raises `InvalidRequest` where a part that is needed would be empty.
    """
    everything = list(examples)
    candidates = sorted({_number(x.text) for x in everything if not is_test(x.text) and is_validation(x.text)})
    chosen = set(candidates[:validation_rows])
    test = [example for example in everything if is_test(example.text)]
    validation = [example for example in everything if _number(example.text) in chosen]
    train = [x for x in everything if not is_test(x.text) and _number(x.text) not in chosen]
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        if not rows:
            raise InvalidRequest(
                f"The data has no {name} row: rows are told apart by a hash of their text, about 81 % to train, 9 % to "
                "validate, 10 % to test. Give at least a few dozen different rows.",
                param="data",
            )
    return Split(tuple(train), tuple(validation), tuple(test))


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16)
