"""Who is under suspicion of felling workers, and who is not run any more: one book for all API processes of a server.

Whatever was in the step that a worker died in is a suspect. Suspects are run again one at a time
(`worker/probation.py`), so that the next death convicts one of them and not its neighbours; what ends well is cleared.
A death with several suspects in its step (they were sent before the word was out) convicts none of them.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from softmux.marks import same_version
from softmux.recorder import Running

REQUEST_DEATHS = 2
"""A request that was in so many deaths is not run again."""
VERSION_DEATHS = 3
"""A version, where none of its requests has ended well between them: different requests of it felled the engine."""
KILLED = 0.5
"""What a death by SIGKILL counts that nobody here sent: it came from without, or from the kernel for want of memory,
which a request may have eaten."""
_MOST = 4096


class Verdicts(msgspec.Struct, frozen=True):
    """What an API process needs to know, by `softmux.marks`."""

    requests: frozenset[int] = frozenset()
    """Quarantined; so are the versions that felled the engine, and those that gave what is not finite."""
    felling: frozenset[int] = frozenset()
    not_finite: frozenset[int] = frozenset()
    suspects: frozenset[int] = frozenset()
    """Requests and versions that were in one death too few."""

    def counts(self) -> dict[str, int]:
        return {
            "requests": len(self.requests),
            "versions": len(self.felling | self.not_finite),
            "suspects": len(self.suspects),
        }


@dataclass(slots=True)
class _Strikes:
    """Marks and how often each was struck; a mark is forgotten `seconds` after its last strike, the oldest first where
    there are too many. `limit` strikes convict; `lasting`: for good."""

    limit: int
    seconds: float
    lasting: bool = False
    _struck: OrderedDict[int, tuple[float, float]] = field(default_factory=OrderedDict)

    def strike(self, mark: int, now: float, weight: float = 1.0) -> None:
        count, _ = self._struck.pop(mark, (0.0, 0.0))
        self._struck[mark] = (count + weight, now)
        if len(self._struck) > _MOST:
            self._struck.popitem(last=False)

    def died(self, marks: frozenset[int], now: float, weight: float) -> None:
        """Strikes the marks of a step that was a worker's last; one that this would convict only where none beside it
        is a suspect."""
        held = [mark for mark in marks if mark in self._struck]
        for mark in marks:
            if len(held) > 1 and mark in held and self._struck.get(mark, (0.0, 0.0))[0] + weight >= self.limit:
                self.strike(mark, now, 0.0)
            else:
                self.strike(mark, now, weight)

    def release(self, version: int) -> bool:
        """Clears all marks of the version, whoever asked for it."""
        released = [mark for mark in self._struck if same_version(mark, version)]
        for mark in released:
            del self._struck[mark]
        return bool(released)

    def clear(self, mark: int) -> bool:
        return self._struck.pop(mark, None) is not None

    def expire(self, now: float) -> bool:
        """Whether any was forgotten."""
        old = [
            mark
            for mark, (count, at) in self._struck.items()
            if now - at > self.seconds and not (self.lasting and count >= self.limit)
        ]
        for mark in old:
            del self._struck[mark]
        return bool(old)

    @property
    def convicted(self) -> frozenset[int]:
        return frozenset(mark for mark, (count, _) in self._struck.items() if count >= self.limit)

    @property
    def suspects(self) -> frozenset[int]:
        return frozenset(mark for mark, (count, _) in self._struck.items() if count < self.limit)


class Quarantine:
    """`seconds` is how long a suspicion, and a conviction for felling, lasts; one for numbers that are not finite,
    which takes `repeats` of them, lasts until `release`. Each method says whether `verdicts` has changed."""

    def __init__(self, seconds: float, repeats: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests = _Strikes(REQUEST_DEATHS, seconds)
        self._versions = _Strikes(VERSION_DEATHS, seconds)
        self._not_finite = _Strikes(repeats, seconds, lasting=True)

    def died(self, running: Running, *, killed: bool = False) -> bool:
        """A worker died in steps over these rows; `killed`: by a SIGKILL that was not its supervisor's."""
        now, weight = self._clock(), KILLED if killed else 1.0
        self._requests.died(running.contents, now, weight)
        self._versions.died(running.versions, now, weight)
        return bool(running.contents or running.versions)

    def cleared(self, content: int, version: int) -> bool:
        """A request under suspicion, or of such a version, has ended well."""
        return any([self._requests.clear(content), self._versions.clear(version)])

    def not_finite(self, version: int) -> bool:
        """A row of the version gave what is not finite."""
        self._not_finite.strike(version, self._clock())
        return version in self._not_finite.convicted

    def release(self, version: int) -> bool:
        """The version was activated or uploaded again: it has its chance once more."""
        return any([self._versions.release(version), self._not_finite.release(version)])

    def expire(self) -> bool:
        now = self._clock()
        forgotten = [strikes.expire(now) for strikes in (self._requests, self._versions, self._not_finite)]
        return any(forgotten)

    def verdicts(self) -> Verdicts:
        return Verdicts(
            requests=self._requests.convicted,
            felling=self._versions.convicted,
            not_finite=self._not_finite.convicted,
            suspects=self._requests.suspects | self._versions.suspects,
        )
