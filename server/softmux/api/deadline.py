"""Until when a request's client waits: the field `timeout`, or the header of this name, in seconds from its receipt."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from softmux.errors import DeadlineExceeded, InvalidRequest
from softmux.worker.messages import LATE

Result = TypeVar("Result")

HEADER = "x-request-timeout"
LONGEST = 86400.0


async def within(deadline: float | None, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives. Raises `DeadlineExceeded` where the monotonic clock reaches `deadline` first: the worker ends
    it by then, too, but says so only between two steps."""
    if deadline is None:
        return await work
    try:
        async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
            return await work
    except TimeoutError:
        raise DeadlineExceeded(LATE) from None


def deadline_of(request: Request, timeout: float | None, began: float) -> float | None:
    """On the clock of `began`; the earlier one where both are given, None where none is. Raises `InvalidRequest`."""
    said = request.headers.get(HEADER)
    if said is not None:
        try:
            seconds = float(said)
        except ValueError:
            seconds = math.nan
        if not 0 < seconds <= LONGEST:
            raise InvalidRequest(
                f"The header {HEADER} is a number of seconds, above 0 and at most {LONGEST:.0f}.", param=HEADER
            )
        timeout = seconds if timeout is None else min(timeout, seconds)
    return None if timeout is None else began + timeout
