"""What was fastest on this machine: measured once for each product, and kept in a file for the next start."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from softmux.engine.device import is_shortage

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`SOFTMUX_CACHE`, or `~/.cache/softmux`."""
    return Path(os.environ.get("SOFTMUX_CACHE") or Path.home() / ".cache" / "softmux")


class Problem(msgspec.Struct, frozen=True):
    """A product to be chosen for: `[rows, width]` · `[outputs, width]`ᵀ, and the dtypes of input and weight."""

    rows: int
    outputs: int
    width: int
    dtype: str
    weight: str


class _Choice(msgspec.Struct):
    problem: Problem
    best: str
    among: list[str]
    """What else was measured: an entry counts only where the same ways stand for choice."""


class _File(msgspec.Struct):
    machine: str
    choices: list[_Choice]


class Choices:
    """`choose` answers from the file what it can, measures the rest; `save` writes what was measured.

    `machine` names all that a measurement depends on beside the problem (card, versions); each has a file of its own in
    `folder`. A file that can't be read, is damaged or is another machine's counts as none, and is written anew.
    """

    def __init__(self, machine: str, folder: Path) -> None:
        self._machine = machine
        self._path = folder / f"{hashlib.sha256(machine.encode()).hexdigest()[:16]}.json"
        self._known: dict[Problem, _Choice] = {}
        self._measured = False
        try:
            found = msgspec.json.decode(self._path.read_bytes(), type=_File)
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("%s is measured anew, its file is not to be read: %s", self._path, error)
            return
        if found.machine == machine:
            self._known = {choice.problem: choice for choice in found.choices}

    def choose(self, problem: Problem, ways: Sequence[str], seconds: Callable[[str], float]) -> str:
        """The way of the lowest `seconds(way)`, the mean of two calls, in turn and back: a card grows hot while it
        multiplies, and slower. Not called where the file knows. A way that raises is left out, and for this start alone
        where it lacked memory; where all do, an error of theirs is raised, of want of memory if any lacked it."""
        known = self._known.get(problem)
        if known is not None and known.among == list(ways) and known.best in ways:
            return known.best
        times: dict[str, list[float]] = {way: [] for way in ways}
        failure: Exception | None = None
        for way in (*ways, *reversed(ways)):
            if way not in times:
                continue
            try:
                times[way].append(seconds(way))
            except Exception as error:
                log.warning("%s for %s is left out: %s", way, problem, error)
                del times[way]
                if failure is None or is_shortage(error) or not is_shortage(failure):
                    failure = error
        if not times:
            raise failure or ValueError("no ways to choose from")
        means = {way: sum(taken) / len(taken) for way, taken in times.items()}
        best = min(means, key=means.__getitem__)
        log.info("product %s: %s", problem, {way: round(mean * 1e6, 1) for way, mean in means.items()})
        if failure is None or not is_shortage(failure):
            self._known[problem] = _Choice(problem, best, list(ways))
            self._measured = True
        return best

    def save(self) -> None:
        """Writes the file if anything was measured since. A folder that can't be written costs the next start the
        measurement, no more."""
        if not self._measured:
            return
        temporary = self._path.with_suffix(f".{os.getpid()}.tmp")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(_File(self._machine, list(self._known.values()))))
            temporary.replace(self._path)
            self._measured = False
        except OSError as error:
            log.warning("what was measured could not be kept: %s", error)
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
