"""Names of people and of companies, in probablepeople's source distribution."""

from __future__ import annotations

from pathlib import Path

from softmux.archives import Archive, read_members
from softmux.tuning.data.examples import Example
from softmux.tuning.sources import labelled_xml

ARCHIVE = Archive(
    requirement="probablepeople==0.5.6",
    filename="probablepeople-0.5.6.tar.gz",
    sha256="4ae95e77f9fa7dceb116538500ab48c81a91bf68eb652d45207b794b450f4392",
)
ABOUT = "the names labelled as persons and as companies in `probablepeople==0.5.6` (`name_data/labeled/*.xml`)."

_FOLDER = "probablepeople-0.5.6/name_data/labeled"
_FILES = {f"{_FOLDER}/person_labeled.xml": " person", f"{_FOLDER}/company_labeled.xml": " company"}


def person_or_company(archive: Path) -> list[Example]:
    """Each name once per row of its file, answered ` person` or ` company`."""
    files = read_members(archive, _FILES)
    return [
        Example(name.text, answer, Path(file).name, name.row)
        for file, answer in _FILES.items()
        for name in labelled_xml.read(files[file], Path(file).name)
    ]
