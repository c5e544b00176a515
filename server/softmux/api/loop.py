"""The event loop of the server's processes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


def run_on_loop(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work` to its end on uvloop, or on asyncio's own loop where a platform has no uvloop."""
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(work)
