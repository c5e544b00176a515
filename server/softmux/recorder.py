"""A worker's flight recorder: a few numbers in a file that both it and its supervisor have mapped.

It outlives the worker, however that ends, and is written while a step runs, when no message can be: so the supervisor
sees whether a step moves, and, after a death, whose rows were in it.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

LOADING, SERVING, COMPILING = 0, 1, 2
"""What the worker is doing: how long it may then take to beat again."""
_BEATS, _PHASE, _COUNTS, _HEADER = 0, 1, 2, 4


@dataclass(frozen=True, slots=True)
class Running:
    """The rows of the steps that ran: what `content_mark` and `version_mark` (`softmux.marks`) say of each, once."""

    contents: frozenset[int] = frozenset()
    versions: frozenset[int] = frozenset()


class FlightRecorder:
    """`rows` is the most that a step has. Without a `path` it is in memory, for an engine that nobody watches.

    A worker writes; its supervisor makes the file, and reads. Two steps at most are on their way at a time.
    """

    def __init__(self, rows: int, path: Path | None = None) -> None:
        size = _HEADER + 4 * rows
        self._rows = rows
        if path is None:
            self._numbers: Ints = np.zeros(size, np.int64)
        else:
            if not path.exists():
                path.write_bytes(bytes(8 * size))
            with path.open("r+b") as file:
                self._numbers = np.frombuffer(mmap.mmap(file.fileno(), 8 * size), np.int64)
        self._steps = self._numbers[_HEADER:].reshape(2, 2, rows)
        self._turn = 0

    # --- the worker's side -------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """The worker gets on: a layer of a step has been run."""
        self._numbers[_BEATS] += 1

    def serve(self) -> None:
        """The loop turns, over a model that is loaded."""
        self._numbers[_PHASE] = SERVING
        self.beat()

    def compiling(self, *_: Any, **__: Any) -> None:
        """A kernel is about to be compiled, which takes its time."""
        if self.phase == SERVING:
            self._numbers[_PHASE] = COMPILING

    def compiled(self, *_: Any, **__: Any) -> None:
        if self.phase == COMPILING:
            self._numbers[_PHASE] = SERVING
        self.beat()

    def step(self, contents: Ints, versions: Ints) -> None:
        """A step over these rows is about to be launched."""
        self._turn ^= 1
        count = len(contents)
        self._steps[self._turn, 0, :count] = contents
        self._steps[self._turn, 1, :count] = versions
        self._numbers[_COUNTS + self._turn] = count

    def landed(self, *, idle: bool) -> None:
        """The step before the one launched last has ended; and that one, too, and no row is left, where the engine is
        `idle`. Else what it ran stands until the next: between steps a worker dies of the last."""
        self._numbers[_COUNTS + (self._turn ^ 1)] = 0
        if idle:
            self._numbers[_COUNTS + self._turn] = 0

    # --- the supervisor's side ---------------------------------------------------------------------------------------

    def clear(self) -> None:
        """For another worker."""
        self._numbers[:] = 0

    @property
    def beats(self) -> int:
        return int(self._numbers[_BEATS])

    @property
    def phase(self) -> int:
        return int(self._numbers[_PHASE])

    def running(self) -> Running:
        """Whose rows were in the steps that had not ended, or in the last."""
        found: list[set[int]] = [set(), set()]
        for turn in (0, 1):
            count = min(self._rows, int(self._numbers[_COUNTS + turn]))
            for kind in (0, 1):
                found[kind].update(self._steps[turn, kind, :count].tolist())
        return Running(frozenset(found[0] - {0}), frozenset(found[1] - {0}))
