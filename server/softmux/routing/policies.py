"""Ways to choose a replica, each a ranking of those there are. Loads are requests under way, or any other count."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Protocol

from softmux.routing.rendezvous import Rendezvous
from softmux.routing.warmth import Warmth


class Policy(Protocol):
    def rank(self, key: str | None, loads: Mapping[str, float]) -> list[str]:
        """All replicas of `loads`, best first, for a request of `key` (None: of the bare model, or of no task)."""

    def sent(self, key: str | None, replica: str) -> None:
        """The request went there."""

    def left(self, replica: str) -> None:
        """The replica is gone, or what comes under its name is a new one."""


class _Stateless:
    def sent(self, key: str | None, replica: str) -> None:
        pass

    def left(self, replica: str) -> None:
        pass


class RandomChoice(_Stateless):
    """Any replica, whatever its load: what a plain balancer does over many connections."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def rank(self, key: str | None, loads: Mapping[str, float]) -> list[str]:
        return self._random.sample(sorted(loads), len(loads))


class LeastLoaded(_Stateless):
    """The less loaded of two drawn at random, then the others (Mitzenmacher, 2001): balanced, and blind to adapters."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def rank(self, key: str | None, loads: Mapping[str, float]) -> list[str]:
        drawn = self._random.sample(sorted(loads), len(loads))
        return sorted(drawn[:2], key=lambda replica: loads[replica]) + drawn[2:]


class ConsistentHashing:
    """The key's home, whatever its load; with `balance`, within bounded loads (Mirrokni, Thorup and Zadimoghaddam,
    SODA 2018): the first in the key's order with less than `balance` times the mean load, and `free` requests at least.
    """

    def __init__(self, random: Random, *, balance: float = math.inf, free: int = 0) -> None:
        if balance < 1:
            raise ValueError(f"a balance is 1 at least, not {balance}: below it, no replica would be within it")
        self._blind = LeastLoaded(random)
        self._rendezvous = Rendezvous()
        self._balance = balance
        self._free = free

    def rank(self, key: str | None, loads: Mapping[str, float]) -> list[str]:
        if key is None or not loads:
            return self._blind.rank(key, loads)
        return self._within(self._rendezvous.order(key, loads.keys()), loads)

    def sent(self, key: str | None, replica: str) -> None:
        pass

    def left(self, replica: str) -> None:
        pass

    def limit(self, loads: Mapping[str, float]) -> float:
        """What a replica may have under way with one more request: none above it takes another while one is below."""
        if math.isinf(self._balance):
            return math.inf
        return max(self._free, math.ceil(self._balance * (sum(loads.values()) + 1) / len(loads)))

    def _within(self, order: tuple[str, ...], loads: Mapping[str, float]) -> list[str]:
        limit = self.limit(loads)
        room = [replica for replica in order if loads[replica] + 1 <= limit]
        full = [replica for replica in order if loads[replica] + 1 > limit]
        return room + sorted(full, key=lambda replica: loads[replica])


class WarmFirst(ConsistentHashing):
    """Where the key is warm, else its home, both within bounded loads: softmux's own.

    A key is warm at one replica as a rule, so that the replicas' memories add up. One that is asked for more than a
    replica may take becomes warm at the next in its order, too, and then goes to the less loaded of these. When a
    replica joins, keys stay where they are warm until load or eviction moves them: nothing is loaded a second time
    only because the order changed.

    `balance`: how far above the mean load a replica may be. `free`: requests that a replica takes whatever the mean is,
    since it runs them beside each other anyway. `warm_keys`: how many adapters a replica keeps.
    """

    def __init__(self, random: Random, *, balance: float = 1.25, free: int = 8, warm_keys: int = 1024) -> None:
        super().__init__(random, balance=balance, free=free)
        self.warmth = Warmth(warm_keys)

    def rank(self, key: str | None, loads: Mapping[str, float]) -> list[str]:
        if key is None or not loads or not (places := self.warmth.places(key)):
            return super().rank(key, loads)
        order = self._rendezvous.order(key, loads.keys())
        limit = self.limit(loads)
        warm = [replica for replica in order if replica in places and loads[replica] + 1 <= limit]
        if not warm:
            return self._within(order, loads)
        if loads[warm[0]] >= self._free:  # the first has enough to do: then the warm ones share
            warm.sort(key=lambda replica: loads[replica])
        return warm + [replica for replica in self._within(order, loads) if replica not in warm]

    def sent(self, key: str | None, replica: str) -> None:
        if key is not None:
            self.warmth.sent(key, replica)

    def left(self, replica: str) -> None:
        self.warmth.forget(replica)
