"""What answers rows: a server, or an engine in this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from softmux.offline.interrupt import Interrupt
from softmux.offline.rows import Answer, Row


@dataclass(frozen=True, slots=True)
class Identity:
    """What makes the answers: the base, and of a task the weights."""

    base_fingerprint: str
    task: str | None
    digest: str | None


class Target(Protocol):
    identity: Identity

    def answers(self, rows: Iterator[Row], interrupt: Interrupt) -> Iterator[Answer]:
        """Each row's answer, as it comes, in any order. Takes rows as it has room for them, and no more. Raises
        `KeyboardInterrupt` soon after a signal, once what had been answered by then is out."""

    def close(self) -> None: ...
