"""What a router believes to be warm where: the keys that it sent to each replica last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection


class Warmth:
    """A replica's `capacity` most recent keys, as a cache that evicts the least recently used keeps them.

    A belief, not knowledge: other routers send, too, and adapters differ in size. Where it is wrong, a request finds
    its adapter cold, and it is warm there from then on.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a replica keeps one key warm at least, not {capacity}")
        self._capacity = capacity
        self._keys: dict[str, OrderedDict[str, None]] = {}
        self._places: dict[str, set[str]] = {}

    def sent(self, key: str, replica: str) -> None:
        """The replica works on the key now, so it is the last that it will drop."""
        keys = self._keys.setdefault(replica, OrderedDict())
        keys[key] = None
        keys.move_to_end(key)
        self._places.setdefault(key, set()).add(replica)
        if len(keys) > self._capacity:
            self._gone(keys.popitem(last=False)[0], replica)

    def places(self, key: str) -> Collection[str]:
        """The replicas where the key is warm, in no order."""
        return self._places.get(key, ())

    def forget(self, replica: str) -> None:
        """The replica has left, or begun anew: nothing is warm there."""
        for key in self._keys.pop(replica, ()):
            self._gone(key, replica)

    def check_integrity(self) -> None:
        """Both directions say the same, and no replica has more than it keeps."""
        pairs = {(key, replica) for replica, keys in self._keys.items() for key in keys}
        assert pairs == {(key, replica) for key, places in self._places.items() for replica in places}
        assert all(len(keys) <= self._capacity for keys in self._keys.values())
        assert all(self._places.values()), "a key that is warm nowhere is remembered"

    def _gone(self, key: str, replica: str) -> None:
        places = self._places[key]
        places.discard(replica)
        if not places:
            del self._places[key]
