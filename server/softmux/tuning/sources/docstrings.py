"""Docstrings of numpy, scipy, pandas and scikit-learn, read out of their wheels' source files (nothing is imported): a
long text, and the line that says it in short."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from softmux.archives import Archive, wheel_files
from softmux.tuning.data.examples import Example, decode

ARCHIVES = (
    Archive(
        requirement="numpy==2.3.5",
        filename="numpy-2.3.5-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        sha256="8cba086a43d54ca804ce711b2a940b16e452807acebe7852ff327f1ecd49b0d4",
    ),
    Archive(
        requirement="scipy==1.16.3",
        filename="scipy-1.16.3-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256="0151a0749efeaaab78711c78422d413c583b8cdd2011a3c1d6c794938ee9fdb2",
    ),
    Archive(
        requirement="pandas==2.3.3",
        filename="pandas-2.3.3-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        sha256="b98560e98cb334799c0b07ca7967ac361a47326e9b4e5a7dfb5ab2b1c9d35a1b",
    ),
    Archive(
        requirement="scikit-learn==1.7.2",
        filename="scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        sha256="89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
    ),
)
ABOUT = (
    "the public docstrings of `numpy==2.3.5`, `scipy==1.16.3`, `pandas==2.3.3` and `scikit-learn==1.7.2` that have a "
    "first line of 4 to 24 words and at least 200 characters after it; each first line once, the text cut at about "
    "1,000 characters."
)
CUE = "\n\nTL;DR:"
"""What a text ends in, so that a model without learned vectors is asked for the same: GPT-2's for summaries (Radford et
al. 2019)."""
SHORTEST, LONGEST = 200, 1000
"""Characters of a text."""
WORDS = range(4, 25)

_SIGNATURE = re.compile(r"[\w.]+\(.*\)(\s*->.*)?")
_NOT_ITS_OWN = re.compile(r"(^|/)(tests?|_vendor|externals|array_api_compat|array_api_extra)/|/(conftest|test_)[^/]*$")
"""Files that are another package's, or tests."""


def summaries(*wheels: Path) -> list[Example]:
    """Docstrings without their first lines, each answered by a space and the first line. A first line that several
    docstrings have is in the rows once: their texts are copies of each other."""
    found: dict[str, Example] = {}
    for wheel in wheels:
        for name, source in wheel_files(wheel, ".py"):
            if _NOT_ITS_OWN.search(name) is None:
                for row, docstring in _docstrings(decode(source, name)):
                    if (parts := _parts(docstring)) is not None:
                        text, line = parts
                        found.setdefault(line, Example(text + CUE, f" {line}", name, row))
    return list(found.values())


def _docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Line and docstring of each public function, method and class, and of those that numpy and scipy give to what is
    written in C."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            said = ast.get_docstring(node)
            if said and not node.name.startswith("_"):
                yield node.lineno, said
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "add_newdoc":
            for given in ast.walk(node):
                if isinstance(given, ast.Constant) and isinstance(given.value, str) and "\n" in given.value:
                    yield given.lineno, inspect.cleandoc(given.value)


def _parts(docstring: str) -> tuple[str, str] | None:
    """A docstring's text and its first line; None where either is too short or long, or is filled in later."""
    first, _, text = docstring.strip().partition("\n\n")
    if _SIGNATURE.fullmatch(" ".join(first.split())):  # of a function in C
        first, _, text = text.strip().partition("\n\n")
    line, text = " ".join(first.split()), text.strip()
    if len(line.split()) not in WORDS or not line[0].isalpha() or not line.endswith("."):
        return None
    if len(text) < SHORTEST or "%(" in docstring or "{" in line:
        return None
    if len(text) > LONGEST:
        text = text[:LONGEST].rpartition("\n")[0].rstrip()
    return (text, line) if len(text) >= SHORTEST else None
