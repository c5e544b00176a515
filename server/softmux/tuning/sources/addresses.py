"""US addresses cut into labelled parts, in usaddress's source distribution."""

from __future__ import annotations

import json
from pathlib import Path

from softmux.archives import Archive, read_member
from softmux.tuning.data.examples import Example, Span
from softmux.tuning.data.split import is_held_back
from softmux.tuning.sources import labelled_xml
from softmux.tuning.sources.recombine import Tokens, recombine

ARCHIVE = Archive(
    requirement="usaddress==0.5.16",
    filename="usaddress-0.5.16.tar.gz",
    sha256="f7e614e2489c159cf85be1b6f86edbfaf329dbeedef4d002a025757afd1ec6c6",
)
ABOUT = "the addresses of `usaddress==0.5.16` (`training/labeled.xml`)."
ABOUT_TAGS = "the addresses of `usaddress==0.5.16` (`training/labeled.xml`), each word with its label."

_MEMBER = "usaddress-0.5.16/training/labeled.xml"


def parts_as_json(archive: Path) -> list[Example]:
    """Addresses, answered by a compact JSON object of their parts: see `as_json`."""
    return [
        Example(address.text, as_json(address.tokens), "labeled.xml", address.row)
        for address in labelled_xml.read(read_member(archive, _MEMBER), "labeled.xml")
    ]


def tagged(archive: Path) -> list[Example]:
    """Addresses, each word labelled; the answer is the labels in order."""
    return [
        _tagged(address.text, address.tokens, "labeled.xml", address.row)
        for address in labelled_xml.read(read_member(archive, _MEMBER), "labeled.xml")
    ]


def recombined(archive: Path, count: int, seed: int) -> list[Example]:
    """`count` made-up addresses at most, from parts of the addresses that are neither test nor validation rows.

    One that happens to be such a row's text is left out.
    """
    return [
        Example(text, as_json(tokens), "labeled.xml, recombined", row)
        for row, text, tokens in _recombined(archive, count, seed)
    ]


def recombined_tagged(archive: Path, count: int, seed: int) -> list[Example]:
    """As `recombined`, each word labelled."""
    return [
        _tagged(text, tokens, "labeled.xml, recombined", row) for row, text, tokens in _recombined(archive, count, seed)
    ]


def _recombined(archive: Path, count: int, seed: int) -> list[tuple[int, str, Tokens]]:
    known = labelled_xml.read(read_member(archive, _MEMBER), "labeled.xml")
    strings = [address.tokens for address in known if not is_held_back(address.text)]
    made = enumerate(recombine(strings, count, seed), start=1)
    joined = ((row, " ".join(word for _, word in tokens), tokens) for row, tokens in made)
    return [(row, text, tokens) for row, text, tokens in joined if not is_held_back(text)]


def _tagged(text: str, tokens: Tokens, file: str, row: int) -> Example:
    spans, at = [], 0
    for label, word in tokens:
        if word:
            at = text.index(word, at)
            spans.append(Span(at, at + len(word), label))
            at += len(word)
    return Example(text, " ".join(span.label for span in spans), file, row, tuple(spans))


def as_json(tokens: tuple[tuple[str, str], ...]) -> str:
    """A space, then `{"AddressNumber":"219",…}`: labels in order of first appearance, a label's tokens joined by
    spaces, without the commas and semicolons around a part (as `usaddress.tag` gives them). A part of nothing else is
    left out.
    """
    parts: dict[str, list[str]] = {}
    for label, token in tokens:
        parts.setdefault(label, []).append(token)
    joined = {label: " ".join(words).strip(" ,;") for label, words in parts.items()}
    fields = {label: value for label, value in joined.items() if value}
    return " " + json.dumps(fields, ensure_ascii=False, separators=(",", ":"))
