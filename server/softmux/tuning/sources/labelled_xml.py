"""The labelled XML of parserator's training files: a collection of strings, each cut into labelled tokens.

<AddressCollection>
  <AddressString><AddressNumber>219</AddressNumber> <StreetName>Dearborn</StreetName></AddressString>
</AddressCollection>
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree

from softmux.tuning.data.examples import BadData


@dataclass(frozen=True, slots=True)
class Labelled:
    """A string and its (label, token) pairs in order; `row` counts strings from 1."""

    row: int
    text: str
    tokens: tuple[tuple[str, str], ...]


def read(data: bytes, file: str) -> list[Labelled]:
    """Raises `BadData` naming the row of a string without tokens, or of broken XML its line."""
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise BadData("a document type is not expected in labelled data", file=file)
    try:
        root = ElementTree.fromstring(data)  # noqa: S314 - entities are refused above
    except ElementTree.ParseError as error:
        raise BadData(f"broken XML ({error})", file=file) from error
    rows: list[Labelled] = []
    for row, string in enumerate(root, start=1):
        tokens = tuple((token.tag, (token.text or "").strip()) for token in string)
        if not tokens:
            raise BadData("the string has no labelled token", file=file, row=row)
        rows.append(Labelled(row, "".join(string.itertext()).strip(), tokens))
    return rows
