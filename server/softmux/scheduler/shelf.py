"""The scheduler's view of the adapter tiers."""

from __future__ import annotations

from typing import Literal, Protocol

from softmux.scheduler.radix import RootKey

Room = Literal["none", "held", "free", "full"]
"""Of the slots for what adapters change of the base (LoRAs, rows of token tables). none: the adapter needs no slot;
held: it has one, and rows run on it; free: it can have one now; full: all are other running adapters'."""


class AdapterShelf(Protocol):
    """What the scheduler needs to know of the adapter tiers. Implemented by `softmux.engine.tiers.AdapterTiers`."""

    def expect(self, adapter: RootKey) -> None:
        """A sequence that runs on it has been queued: its parts may be brought to host memory meanwhile."""

    def ready(self, adapter: RootKey) -> bool:
        """Whether its parts are in host memory; if not, their loading begins. Raises what made loading fail."""

    def compiled(self, adapter: RootKey) -> int:
        """How many leading tokens' KV can be copied into slots instead of being computed. 0: none."""

    def room(self, adapter: RootKey) -> Room:
        """Whether there is a slot for it. Asked of what is `ready`; raises what makes that impossible for ever."""

    def hold(self, adapter: RootKey) -> int:
        """Keep it in host memory until `release`: a sequence runs on it. Its slot, −1 where it needs none."""

    def release(self, adapter: RootKey) -> None: ...
