"""How long prompts and replies are, in tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from softmux.errors import InvalidRequest

WORDS = "N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA[:MAX], or file:PATH (a length a line)"

_Draw = Callable[[int, np.random.Generator], NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of token counts, each at least 1."""

    text: str
    _draw: _Draw

    def draw(self, count: int, draw: np.random.Generator) -> list[int]:
        drawn: list[int] = self._draw(count, draw).tolist()
        return drawn


def parse_lengths(text: str) -> Lengths:
    """Reads `N`, `uniform:LOW:HIGH` (both included), `lognormal:MEDIAN:SIGMA[:MAX]`, or `file:PATH`, whose lengths
    are drawn at random. Raises `InvalidRequest` for anything else."""
    kind, _, rest = text.partition(":")
    try:
        if kind == "file":
            return Lengths(text, _listed(Path(rest)))
        if kind == "uniform":
            low, high = (int(part) for part in rest.split(":"))
            if 1 <= low <= high:
                return Lengths(text, lambda count, draw: draw.integers(low, high + 1, count))
        elif kind == "lognormal":
            median, sigma, *most = (float(part) for part in rest.split(":"))
            if median >= 1 and sigma >= 0 and len(most) <= 1:
                return Lengths(text, _lognormal(median, sigma, most[0] if most else np.inf))
        elif (fixed := int(text)) >= 1:
            return Lengths(text, lambda count, draw: np.full(count, fixed))
    except ValueError:
        pass
    raise InvalidRequest(f"A length is {WORDS}; not {text!r}.", param="input-len/output-len")


def _lognormal(median: float, sigma: float, most: float) -> _Draw:
    def draw_some(count: int, draw: np.random.Generator) -> NDArray[np.int64]:
        drawn = np.rint(draw.lognormal(np.log(median), sigma, count))
        return np.clip(drawn, 1, most).astype(np.int64)

    return draw_some


def _listed(path: Path) -> _Draw:
    try:
        lengths = np.array([int(line) for line in path.read_text("utf-8").split()], dtype=np.int64)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}.", param="input-len/output-len") from error
    if not lengths.size or lengths.min() < 1:
        raise InvalidRequest(f"{path} must hold lengths of at least 1, one a line.", param="input-len/output-len")
    return lambda count, draw: draw.choice(lengths, count)
