"""The places for uploads, which are in memory while they are read and admitted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

PLACES = 4


class UploadPlaces:
    """So many uploads at a time in an API process, and half of them of one tenant at most: one that sends slowly keeps
    its own waiting, and no others."""

    def __init__(self, places: int = PLACES) -> None:
        self._all = asyncio.Semaphore(places)
        self._most = max(1, places // 2)
        self._own: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Of the tenants that have one, or wait for one."""

    @contextlib.asynccontextmanager
    async def of(self, tenant: str) -> AsyncIterator[None]:
        """Holds a place, once there is one."""
        own = self._own.setdefault(tenant, asyncio.Semaphore(self._most))
        async with own, self._all:
            yield
