"""Waiting for what must happen, never for a time: the limits are for what never comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SECONDS = 60.0
"""A busy machine is slow."""


def wait_for(condition: Callable[[], object], seconds: float = SECONDS, what: str = "it did not happen") -> None:
    """Returns once `condition` holds. Raises `AssertionError` where it does not within `seconds`."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        time.sleep(0.02)


async def eventually(
    condition: Callable[[], object], seconds: float = SECONDS, what: str = "it did not happen"
) -> None:
    """As `wait_for`, with the loop going on."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, f"not within {seconds} s: {what}"
        await asyncio.sleep(0.01)
