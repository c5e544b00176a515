"""How long to wait before something that died is started again."""

from __future__ import annotations

_LONGEST = 30.0
_STEADY = 60.0


class Pauses:
    """Each twice as long as the one before, in seconds, from `first` up to half a minute. What lived for a minute died
    of something new: the pauses begin again."""

    def __init__(self, first: float) -> None:
        self._first = self._next = first

    def after(self, lived: float) -> float:
        """The pause after something that has lived so many seconds."""
        pause = self._first if lived > _STEADY else self._next
        self._next = min(_LONGEST, 2 * pause)
        return pause
