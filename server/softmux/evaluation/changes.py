"""Ways in which users' texts differ from those of a training set, each a pure function of the row and the seed.

A text is changed word by word, so that the labels of a task that labels words go with them. The answer that is
expected stays: what a reader would still say of the text, a task should.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from softmux.evaluation.spanish import SPANISH
from softmux.tuning.data.examples import Example, Span

_TYPO_SHARE = 0.2
_TYPO_LETTERS = 4
_BESIDE = {
    "q": "wa", "w": "qes", "e": "wrd", "r": "etf", "t": "ryg", "y": "tuh", "u": "yij", "i": "uok", "o": "ipl", "p": "o",
    "a": "qsz", "s": "adwx", "d": "sfec", "f": "dgrv", "g": "fhtb", "h": "gjyn", "j": "hkum", "k": "jli", "l": "ko",
    "z": "xa", "x": "zcs", "c": "xvd", "v": "cbf", "b": "vng", "n": "bmh", "m": "nj",
}  # fmt: skip
"""Keys that lie next to each other on a QWERTY keyboard."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A word, a labelled span, or what lies between."""

    text: str
    label: str | None = None

    @property
    def word(self) -> bool:
        return bool(self.text.strip())


@dataclass(frozen=True, slots=True)
class Change:
    """`words` say exactly what it does. `make` gives the changed row, or the same one where nothing can change."""

    name: str
    words: str
    make: Callable[[Example, int], Example]


def _typos(example: Example, seed: int) -> Example:
    rng = _rng(example, "typos", seed)
    pieces = list(_pieces(example))
    open_ = [i for i, piece in enumerate(pieces) if sum(map(str.isalpha, piece.text)) >= _TYPO_LETTERS]
    chosen = [i for i in open_ if rng.random() < _TYPO_SHARE] or rng.sample(open_, min(1, len(open_)))
    for i in chosen:
        pieces[i] = replace(pieces[i], text=_typo(pieces[i].text, rng))
    return _whole(example, pieces)


def _typo(word: str, rng: Random) -> str:
    """One slip at one letter but the first: two letters swapped, one left out, one doubled, or the key beside it."""
    places = [i for i, letter in enumerate(word) if letter.isalpha()][1:]
    at = rng.choice(places)
    letter = word[at]
    kind = rng.choice(("swap", "leave", "double", "beside"))
    before = word[at - 1]
    if kind == "swap" and before.isalpha() and before != letter:
        return word[: at - 1] + letter + before + word[at + 1 :]
    if kind == "leave":
        return word[:at] + word[at + 1 :]
    if kind == "beside" and letter.lower() in _BESIDE:
        other = rng.choice(_BESIDE[letter.lower()])
        return word[:at] + (other.upper() if letter.isupper() else other) + word[at + 1 :]
    return word[:at] + letter + word[at:]


def _truncated(example: Example, seed: int) -> Example:
    pieces = list(_pieces(example))
    words = [i for i, piece in enumerate(pieces) if piece.word]
    kept = pieces[: words[(len(words) + 1) // 2 - 1] + 1] if words else pieces
    return _whole(example, kept)


def _code_mixed(example: Example, seed: int) -> Example:
    return _whole(example, [replace(piece, text=_spanish(piece.text)) for piece in _pieces(example)])


def _spanish(word: str) -> str:
    """The word's Spanish, within the same punctuation and with the same first capital; itself where it has none."""
    core = re.search(r"[A-Za-z']+", word)
    said = SPANISH.get(core[0].lower()) if core is not None else None
    if core is None or said is None or re.search(r"[A-Za-z]", word[: core.start()] + word[core.end() :]):
        return word
    return word[: core.start()] + (said.capitalize() if core[0][0].isupper() else said) + word[core.end() :]


CHANGES: tuple[Change, ...] = (
    Change(
        "typos",
        f"Each word of {_TYPO_LETTERS} letters or more gets one slip with probability {_TYPO_SHARE:g}, and one word at "
        "least does: at a letter that is not its first, two letters are swapped, one is left out, one is doubled, or "
        "one becomes its neighbour on a QWERTY keyboard.",
        _typos,
    ),
    Change("truncated", "The text ends after the first half of its words, rounded up.", _truncated),
    Change(
        "code-mixed",
        f"Every English word of a list of {len(SPANISH)} frequent ones is said in Spanish, the rest stays English. "
        "Rows without any such word are left out.",
        _code_mixed,
    ),
)


def in_front(example: Example, text: str) -> Example:
    """The row with `text` and an empty line before it."""
    return joined([Example(text, example.answer), example], "\n\n")


def behind(example: Example, text: str) -> Example:
    """The row with an empty line and `text` after it."""
    return joined([example, Example(text, example.answer)], "\n\n")


def joined(examples: Sequence[Example], between: str = " ") -> Example:
    """The texts one after the other, with the first one's answer, and the labels of all their words."""
    text, spans = "", []
    for example in examples:
        text += between if text else ""
        spans += [Span(len(text) + span.start, len(text) + span.end, span.label) for span in example.spans]
        text += example.text
    return replace(examples[0], text=text, spans=tuple(spans))


def _pieces(example: Example) -> Iterator[_Piece]:
    at = 0
    for span in sorted(example.spans, key=lambda span: span.start):
        yield from _between(example.text[at : span.start])
        yield _Piece(example.text[span.start : span.end], span.label)
        at = span.end
    yield from _between(example.text[at:])


def _between(text: str) -> Iterator[_Piece]:
    return (_Piece(part) for part in re.split(r"(\s+)", text) if part)


def _whole(example: Example, pieces: Sequence[_Piece]) -> Example:
    text, spans = "", []
    for piece in pieces:
        if piece.label is not None:
            spans.append(Span(len(text), len(text) + len(piece.text), piece.label))
        text += piece.text
    return replace(example, text=text, spans=tuple(spans))


def _rng(example: Example, name: str, seed: int) -> Random:
    """The row's own: what becomes of it does not depend on which others are asked."""
    return Random(hashlib.sha256(f"{seed} {name} {example.text}".encode()).digest())  # noqa: S311
