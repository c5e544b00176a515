"""The scheduler's view of the adapter tiers."""

from __future__ import annotations

from typing import Protocol

from softmux.scheduler.radix import RootKey


class AdapterShelf(Protocol):
    """What the scheduler needs to know of the adapter tiers. Implemented by `softmux.engine.tiers.AdapterTiers`."""

    def expect(self, adapter: RootKey) -> None:
        """A sequence that runs on it has been queued: its parts may be brought to host memory meanwhile."""

    def ready(self, adapter: RootKey) -> bool:
        """Whether its parts are in host memory; if not, their loading begins. Raises what made loading fail."""

    def compiled(self, adapter: RootKey) -> int:
        """How many leading tokens' KV can be copied into slots instead of being computed. 0: none."""

    def hold(self, adapter: RootKey) -> None:
        """Keep it in host memory until `release`: a sequence runs on it."""

    def release(self, adapter: RootKey) -> None: ...
