"""More labelled strings out of few: two strings spliced where a label meets, and runs exchanged for others' runs.

A thousand strings are learned by heart before they are understood. Recombined ones keep the orders of labels and the
words that really occur under each, but are new each, so that copying and cutting have to be learned instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby

Tokens = tuple[tuple[str, str], ...]
Runs = list[tuple[str, list[str]]]

SPLICED = 0.5
"""How likely a string goes on as another one does."""
EXCHANGED = 0.5
"""How likely a run is exchanged."""
_CASES: tuple[tuple[float, Callable[[str], str]], ...] = (
    (0.7, str),
    (0.85, str.upper),
    (0.95, str.lower),
    (1.0, str.title),
)
_PUNCTUATION = ",;"


def recombine(strings: Sequence[Tokens], count: int, seed: int) -> list[Tokens]:
    """`count` strings of (label, token) pairs, made from `strings`. The same arguments give the same strings."""
    rng = random.Random(seed)  # noqa: S311 - a choice of words is no secret
    cut = [_runs(string) for string in strings]
    words_of: dict[str, list[list[str]]] = {}
    for label, words in (run for runs in cut for run in runs):
        words_of.setdefault(label, []).append(words)
    made: list[Tokens] = []
    for _ in range(count):
        runs = rng.choice(cut)
        if rng.random() < SPLICED:
            runs = _spliced(rng, runs, rng.choice(cut))
        made.append(_exchanged(rng, runs, words_of))
    return made


def _spliced(rng: random.Random, first: Runs, second: Runs) -> Runs:
    """`first` up to a label that both have, then `second` from there; `first` where a label would come twice."""
    labels, others = [label for label, _ in first], [label for label, _ in second]
    common = [label for label in labels if label in others]
    if not common:
        return first
    meeting = rng.choice(common)
    joined = first[: labels.index(meeting)] + second[others.index(meeting) :]
    return joined if len({label for label, _ in joined}) == len(joined) else first


def _exchanged(rng: random.Random, runs: Runs, words_of: dict[str, list[list[str]]]) -> Tokens:
    """Each run with its own words or another's of its label, all in one letter case."""
    draw = rng.random()
    case = next(change for limit, change in _CASES if draw < limit)
    made: list[tuple[str, str]] = []
    for label, words in runs:
        if rng.random() < EXCHANGED:
            words = _ending_as(words, rng.choice(words_of[label]))
        made += [(label, case(word)) for word in words]
    return tuple(made)


def _ending_as(old: list[str], new: list[str]) -> list[str]:
    """`new`, ending with the comma or semicolon that `old` ends with, or without."""
    bare = new[-1].rstrip(_PUNCTUATION)
    tail = old[-1][len(old[-1].rstrip(_PUNCTUATION)) :]
    return [*new[:-1], bare + tail] if bare else old


def _runs(string: Tokens) -> Runs:
    """Neighbouring tokens with one label, together."""
    return [(label, [word for _, word in pairs]) for label, pairs in groupby(string, key=lambda pair: pair[0])]
