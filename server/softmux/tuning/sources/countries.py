"""Countries and their capitals, in countryinfo's source distribution: one JSON file a country."""

from __future__ import annotations

import json
from pathlib import Path

from softmux.archives import Archive, member_names, read_members
from softmux.tuning.data.examples import BadData, Example, decode

ARCHIVE = Archive(
    requirement="countryinfo==1.0.1",
    filename="countryinfo-1.0.1.tar.gz",
    sha256="300b378f6371a2a7ee804ecdc0ad6ebe29e3647b8ca341d83cfebd9ce6934261",
)
ABOUT = "the countries and territories of `countryinfo==1.0.1` that have a capital, split by country."


def capitals(archive: Path) -> list[Example]:
    """Country names, each answered by a space and its capital; the first where a country names several."""
    names = member_names(archive, "countryinfo-1.0.1/countryinfo/data/", ".json")
    examples = [country(data, Path(name).name) for name, data in read_members(archive, names).items()]
    return sorted((example for example in examples if example is not None), key=lambda example: example.text)


def country(data: bytes, file: str) -> Example | None:
    """The country of one JSON file, or None where it has no capital. Raises `BadData` naming file and field."""
    try:
        said = json.loads(decode(data, file))
    except json.JSONDecodeError as error:
        raise BadData(f"broken JSON ({error.msg})", file=file, row=error.lineno) from error
    if not isinstance(said, dict) or not isinstance(said.get("name"), str):
        raise BadData("an object with a name is expected", file=file, row=1, column="name")
    capital = said.get("capital")
    if isinstance(capital, list) and capital:
        capital = capital[0]
    if not capital:
        return None
    if not isinstance(capital, str):
        raise BadData(f"{capital!r} is no text", file=file, row=1, column="capital")
    return Example(said["name"], f" {capital}", file, 1)
