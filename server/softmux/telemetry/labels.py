"""Tasks as label values: the busiest have their own, the rest share `other`."""

from __future__ import annotations

OTHER = "other"
_PROBATION = 100


class BoundedLabels:
    """At most `limit` names ever get a label of their own, and keep it, so that no counter goes back.

    The first half is given as names come; the second only to names used often, so that the busiest find room however
    many came before them.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._own: set[str] = set()
        self._uses: dict[str, int] = {}

    def label(self, name: str) -> str:
        """The label of `name`, which counts as used once more."""
        if name in self._own:
            return name
        if len(self._own) >= self._limit:
            return OTHER
        if len(self._own) >= self._limit // 2:
            uses = self._uses.get(name, 0) + 1
            if uses < _PROBATION:
                if len(self._uses) >= 16 * self._limit and name not in self._uses:
                    self._uses.clear()  # mostly names that came once
                self._uses[name] = uses
                return OTHER
        self._own.add(name)
        self._uses.pop(name, None)
        return name
