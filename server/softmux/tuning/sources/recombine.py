"""More labelled strings out of few: the runs of one string exchanged for runs with the same labels from others.

A thousand strings are learned by heart before they are understood. Recombined ones keep their structures and the words
that really occur under each label, but are new each, so that copying and cutting have to be learned instead.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import groupby

Tokens = tuple[tuple[str, str], ...]

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
    runs: dict[str, list[list[str]]] = {}
    for string in strings:
        for label, words in _runs(string):
            runs.setdefault(label, []).append(words)
    return [_one(rng, rng.choice(strings), runs) for _ in range(count)]


def _one(rng: random.Random, string: Tokens, runs: dict[str, list[list[str]]]) -> Tokens:
    draw = rng.random()
    case = next(change for limit, change in _CASES if draw < limit)
    made: list[tuple[str, str]] = []
    for label, words in _runs(string):
        if rng.random() < EXCHANGED:
            words = _ending_as(words, rng.choice(runs[label]))
        made += [(label, case(word)) for word in words]
    return tuple(made)


def _ending_as(old: list[str], new: list[str]) -> list[str]:
    """`new`, ending with the comma or semicolon that `old` ends with, or without."""
    bare = new[-1].rstrip(_PUNCTUATION)
    tail = old[-1][len(old[-1].rstrip(_PUNCTUATION)) :]
    return [*new[:-1], bare + tail] if bare else old


def _runs(string: Tokens) -> list[tuple[str, list[str]]]:
    """Neighbouring tokens with one label, together."""
    return [(label, [word for _, word in pairs]) for label, pairs in groupby(string, key=lambda pair: pair[0])]
