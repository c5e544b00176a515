"""What a load is run on."""

from __future__ import annotations

from typing import Protocol

from softmux.bench.loads.load import Load
from softmux.bench.loads.outcome import Outcome


class Target(Protocol):
    """An HTTP server, an engine in this process, or a peer."""

    name: str

    def run(self, load: Load) -> tuple[list[Outcome], float | None]:
        """Sends the load. Outcomes in the jobs' order; and the busiest client process's share of a core, None where
        there is no client."""

    def close(self) -> None: ...
