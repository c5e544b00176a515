"""How long to wait before something that died is started again."""

from __future__ import annotations

_LONGEST, _LONGEST_SERVED = 30.0, 1.0
_STEADY = 60.0


class Pauses:
    """Each twice as long as the one before, in seconds, from `first` up to half a minute. What lived for a minute died
    of something new: the pauses begin again.

    What had been ready when it died has no long pause, however often: clients wait for it, and what they ask of it can
    be refused. The long ones are for what can't so much as start."""

    def __init__(self, first: float, longest: float = _LONGEST) -> None:
        self._first = self._next = first
        self._longest = longest

    def after(self, lived: float, *, served: bool) -> float:
        """The pause after something that has lived so many seconds, and had been ready (`served`) or never was."""
        pause = self._first if lived > _STEADY else self._next
        if served:
            pause = min(_LONGEST_SERVED, pause)
        self._next = min(self._longest, 2 * pause)
        return pause
