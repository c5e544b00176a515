"""Which tasks this server has at hand, by name: what a gateway sends requests by that knows tasks, not weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from softmux.engine.engine import Engine
from softmux.scheduler.radix import RootKey
from softmux.scheduler.sequence import Sequence

_REMEMBERED = 8
"""Times as many as are told: some of the last used may have given way in memory to others."""


class Residents:
    """At most `most` names each of the adapters in host memory (a copy away from a step), the last used first, and of
    those that requests wait for. Names are those by which requests ask, so tasks of one name are one here: to a
    gateway it is a hint, never what answers.
    """

    def __init__(self, engine: Engine, most: int) -> None:
        self._engine, self._most = engine, most
        self._names: OrderedDict[RootKey, str] = OrderedDict()

    def began(self, sequence: Sequence) -> None:
        """A sequence of an adapter has come."""
        self._names[sequence.root] = sequence.task
        self._names.move_to_end(sequence.root)
        if len(self._names) > _REMEMBERED * self._most:
            self._names.popitem(last=False)

    def told(self) -> dict[str, str]:
        """The labels of `lora_requests_info`."""
        tiers, waiting = self._engine.tiers, self._engine.scheduler.waiting
        resident = (name for root, name in reversed(self._names.items()) if tiers.at_hand(root))
        queued = (sequence.task for sequence in waiting if sequence.task)
        return {
            "max_lora": str(self._most),
            "running_lora_adapters": ",".join(_first(resident, self._most)),
            "waiting_lora_adapters": ",".join(_first(queued, self._most)),
        }


def _first(names: Iterable[str], most: int) -> list[str]:
    found: dict[str, None] = {}
    for name in names:
        found[name] = None
        if len(found) == most:
            break
    return list(found)
