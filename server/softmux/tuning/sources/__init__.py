"""The data a recipe can name: one module a package, each turning the package's own files into examples."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from softmux.archives import Archive, fetch
from softmux.errors import InvalidRequest
from softmux.tuning.data.examples import Example, checked, known, several
from softmux.tuning.recipes.recipe import Data, SourceName
from softmux.tuning.sources import addresses, countries, docstrings, hutto, names, table


@dataclass(frozen=True, slots=True)
class Source:
    """`read` is given the paths of the fetched archives; `classes`: the answers are a few fixed ones; `about` goes into
    READMEs.

    `make_more`, given the same paths, makes at most so many rows to train on, by a seed, out of rows that are not held
    back.
    """

    archives: tuple[Archive, ...]
    read: Callable[..., list[Example]]
    classes: bool
    about: str
    make_more: Callable[..., list[Example]] | None = None

    def fetched(self, cache: Path | None = None) -> list[Path]:
        """The archives' paths in the cache. Raises `FetchFailed`."""
        return [fetch(archive, cache) for archive in self.archives]

    def load(self, cache: Path | None = None) -> list[Example]:
        """Its rows, as the archives have them. Raises `BadData`, `FetchFailed`."""
        return self.read(*self.fetched(cache))


SOURCES: dict[SourceName, Source] = {
    "movie-sentiment": Source((hutto.ARCHIVE,), hutto.movie_sentiment, True, hutto.ABOUT_SENTIMENT),
    "product-sentiment": Source((hutto.ARCHIVE,), hutto.product_sentiment, True, hutto.ABOUT_PRODUCTS),
    "text-source": Source((hutto.ARCHIVE,), hutto.text_source, True, hutto.ABOUT_SOURCE),
    "person-or-company": Source((names.ARCHIVE,), names.person_or_company, True, names.ABOUT),
    "capital": Source((countries.ARCHIVE,), countries.capitals, False, countries.ABOUT),
    "address": Source((addresses.ARCHIVE,), addresses.parts_as_json, False, addresses.ABOUT, addresses.recombined),
    "address-tags": Source(
        (addresses.ARCHIVE,), addresses.tagged, False, addresses.ABOUT_TAGS, addresses.recombined_tagged
    ),
    "docstring-summary": Source(docstrings.ARCHIVES, docstrings.summaries, False, docstrings.ABOUT),
}


def load(data: Data, folder: Path, cache: Path | None = None, labels: Collection[str] | None = None) -> list[Example]:
    """The checked rows of a recipe's `data`; `folder` is the recipe's own, `labels` the answers that a user's own rows
    may have. Raises `BadData`, `FetchFailed`."""
    if data.source in ("file", "hub"):
        path = table.hub_file(data.hub, str(data.path)) if data.hub else folder / str(data.path)
        rows = table.read(path, data.prompt, data.answer)
        rows = rows if labels is None else known(rows, labels, data.answer)
        columns = (data.prompt, data.answer)
        return several(checked(rows, classes=labels is not None, file=path.name, columns=columns), data.answer)
    source = SOURCES[data.source]
    return several(checked(source.load(cache), classes=source.classes), "answer")


def load_extra(data: Data, seed: int, cache: Path | None = None) -> list[Example]:
    """The made-up rows that `data.extra_rows` asks for. Raises `InvalidRequest` where the source can make none."""
    if not data.extra_rows:
        return []
    source = SOURCES.get(data.source)
    if source is None or source.make_more is None:
        raise InvalidRequest(f"The source {data.source} can't make extra rows.", param="data.extra_rows")
    return source.make_more(*source.fetched(cache), data.extra_rows, seed)


def about(data: Data) -> str:
    """One sentence on where the rows come from."""
    if data.path is not None:
        where = f" of `{data.hub}`" if data.hub else ""
        return f"`{data.path.name}`{where}, columns `{data.prompt}` and `{data.answer}`."
    extra = (
        f" {data.extra_rows} more rows to train on are recombined from the rows to train." if data.extra_rows else ""
    )
    return SOURCES[data.source].about + extra
