"""Short texts rated for sentiment (C.J. Hutto, ICWSM 2014), in vaderSentiment's source distribution.

Four files of UTF-8, tab-separated rows `id, mean rating from -4 to 4, text`, one a line, no header.
"""

from __future__ import annotations

import math
from pathlib import Path

from softmux.archives import Archive, read_member, read_members
from softmux.tuning.data.examples import BadData, Example, decode

ARCHIVE = Archive(
    requirement="vaderSentiment==2.5",
    filename="vaderSentiment-2.5.tar.gz",
    sha256="b960c954831f5ca58afee61780cc04ed48e551b91e783bfcbfb2c18bb8081a84",
)
ABOUT_SENTIMENT = (
    "movie review snippets of `vaderSentiment==2.5` (`hutto_ICWSM_2014.tar.gz`, `movieReviewSnippets_GroundTruth.txt`) "
    "whose mean rating is beyond ±0.5."
)
ABOUT_PRODUCTS = (
    "product review snippets of `vaderSentiment==2.5` (`hutto_ICWSM_2014.tar.gz`, "
    "`amazonReviewSnippets_GroundTruth.txt`) whose mean rating is beyond ±0.5."
)
ABOUT_SOURCE = (
    "the tweets, movie review snippets, product review snippets and newspaper editorial snippets of "
    "`vaderSentiment==2.5` (`hutto_ICWSM_2014.tar.gz`), told apart by their file."
)

_INNER = "vaderSentiment-2.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_MOVIES = "movieReviewSnippets_GroundTruth.txt"
_PRODUCTS = "amazonReviewSnippets_GroundTruth.txt"
_FILES = {
    "tweets_GroundTruth.txt": " tweet",
    _MOVIES: " movie",
    _PRODUCTS: " product",
    "nytEditorialSnippets_GroundTruth.txt": " news",
}
_NEUTRAL = 0.5


def movie_sentiment(archive: Path) -> list[Example]:
    """Snippets of movie reviews rated beyond ±0.5, answered ` positive` or ` negative`."""
    return _sentiment(archive, _MOVIES)


def product_sentiment(archive: Path) -> list[Example]:
    """The same of product reviews. A text that is there twice with two ratings is left out."""
    examples = _sentiment(archive, _PRODUCTS)
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.text, set()).add(example.answer)
    return [example for example in examples if len(answers[example.text]) == 1]


def _sentiment(archive: Path, file: str) -> list[Example]:
    return [
        Example(text, " positive" if rating > 0 else " negative", file, row)
        for row, rating, text in rated(_read(archive, [file])[file], file)
        if abs(rating) > _NEUTRAL
    ]


def text_source(archive: Path) -> list[Example]:
    """Every text of the four files, answered by which it is in. A text in two of them is left out."""
    examples = [
        Example(text, answer, file, row)
        for file, data in _read(archive, list(_FILES)).items()
        for answer in [_FILES[file]]
        for row, _, text in rated(data, file)
    ]
    answers: dict[str, set[str]] = {}
    for example in examples:
        answers.setdefault(example.text, set()).add(example.answer)
    return [example for example in examples if len(answers[example.text]) == 1]


def rated(data: bytes, file: str) -> list[tuple[int, float, str]]:
    """(row, rating, text) of each line. Raises `BadData` naming file, row and column."""
    rows: list[tuple[int, float, str]] = []
    for row, line in enumerate(decode(data, file).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != 3:
            raise BadData(
                f"3 tab-separated columns are expected (id, rating, text), not {len(cells)}", file=file, row=row
            )
        try:
            rating = float(cells[1])
        except ValueError as error:
            raise BadData(f"{cells[1]!r} is no number", file=file, row=row, column="rating") from error
        if not math.isfinite(rating):
            raise BadData(f"{cells[1]!r} is no finite number", file=file, row=row, column="rating")
        rows.append((row, rating, cells[2]))
    return rows


def _read(archive: Path, files: list[str]) -> dict[str, bytes]:
    inner = read_member(archive, _INNER)
    found = read_members(inner, [f"hutto_ICWSM_2014/{file}" for file in files])
    return {file: found[f"hutto_ICWSM_2014/{file}"] for file in files}
