"""The loader: threads that bring adapters to host memory from the disk tier or their source, and write to disk."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from softmux.engine.arena import Empty, pageable
from softmux.engine.disk import DiskTier
from softmux.engine.host_adapter import HostAdapter
from softmux.errors import InternalError, SoftmuxError
from softmux.formats.combination import combined, digests_of
from softmux.formats.folder import read_adapter
from softmux.formats.parts import Parts
from softmux.scheduler.radix import RootKey
from softmux.types import ModelSpec

log = logging.getLogger(__name__)

AdapterSource = Callable[[RootKey], Mapping[str, bytes]]
"""Fetches a version's files by its key. Called on the loader's threads; raises a `SoftmuxError` in words."""


@dataclass(slots=True, frozen=True)
class Arrival:
    """A load that has ended: the adapter, or why not; the tier that had it, and the seconds since it was asked for."""

    key: RootKey
    adapter: HostAdapter | None
    error: SoftmuxError | None
    tier: str
    seconds: float


class AdapterLoader:
    """`readers` threads load, one writes: nobody waits for a write behind. The engine's thread takes what has arrived;
    `on_arrival`, called from a reader, wakes it: once, however much arrives until it comes."""

    def __init__(
        self,
        *,
        spec: ModelSpec,
        dtype: torch.dtype,
        kv_dtype: torch.dtype,
        empty: Empty,
        source: AdapterSource,
        disk: DiskTier | None,
        readers: int,
        on_arrival: Callable[[], None],
        spent: deque[object],
    ) -> None:
        """`spent`: what nobody has a use for any more; a reader lets go of it before it loads."""
        self.spec = spec
        self.own: Callable[[HostAdapter, Empty], HostAdapter] | None = None
        """Where several processes hold one model: hands them their parts of an adapter, and gives this one's. The disk
        then keeps whole adapters."""
        self._dtype = dtype
        self._kv_dtype = kv_dtype
        self._empty = empty
        self._source = source
        self.disk = disk
        self._on_arrival = on_arrival
        self._spent = spent
        self._arrived: deque[Arrival] = deque()
        self._told = False
        """The engine has been woken, and has not come yet."""
        self._reads: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._writes: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._open = 0
        self._settled = threading.Condition()
        self._threads = [self._thread(self._reads, f"adapter-loader-{number}") for number in range(readers)]
        self._threads.append(self._thread(self._writes, "adapter-writer"))

    def load(self, key: RootKey) -> None:
        asked = time.perf_counter()
        self._give(self._reads, lambda: self._load(key, asked))

    def take(self) -> list[Arrival]:
        """The loads that have ended since the last call."""
        self._told = False  # first: what arrives from here on tells of itself
        return [self._arrived.popleft() for _ in range(len(self._arrived))]

    def write(self, key: RootKey, adapter: HostAdapter) -> None:
        """Puts the adapter, as it is now, into the disk tier, if there is one."""
        disk = self.disk
        if disk is not None:
            now = adapter.as_now()
            self._give(self._writes, lambda: disk.put(key, now))

    def call(self, job: Callable[[], object]) -> None:
        """Does `job` behind the writes that wait."""
        self._give(self._writes, job)

    def has_on_disk(self, key: RootKey) -> bool:
        return self.disk is not None and key in self.disk

    @property
    def damaged_on_disk(self) -> int:
        """Files that the disk tier has dropped as damaged."""
        return 0 if self.disk is None else self.disk.damaged

    def settle(self, timeout: float) -> bool:
        """Waits until all that was asked for by now is done; whether it was within `timeout` seconds."""
        with self._settled:
            return self._settled.wait_for(lambda: self._open == 0, timeout)

    def close(self) -> None:
        """Ends the threads after the jobs they have."""
        for _ in self._threads[:-1]:
            self._reads.put(None)
        for thread in self._threads[:-1]:
            thread.join()
        self._writes.put(None)
        self._threads[-1].join()

    # --- on the threads ----------------------------------------------------------------------------------------------

    def _load(self, key: RootKey, asked: float) -> None:
        adapter, error, tier = None, None, "disk"
        self._spent.clear()
        try:
            empty = self._empty if self.own is None else pageable
            adapter = self.disk.get(key, empty) if self.disk is not None else None
            if adapter is None:
                tier = "registry"
                adapter = HostAdapter.from_parts(self._parts(key), self._dtype, empty, self._kv_dtype)
            if self.own is not None:
                if tier == "registry":
                    self.write(key, adapter)
                adapter = self.own(adapter, self._empty)
        except SoftmuxError as known:
            error = known
        except Exception as unknown:
            log.exception("loading %s failed", key.digest)
            error = InternalError(
                f"loading adapter {key.digest} failed: {unknown}",
                public=f"loading adapter {key.digest} failed, and the server's log says why; try again",
            )
        self._arrived.append(Arrival(key, adapter, error, tier, time.perf_counter() - asked))
        if not self._told:  # looked at after the arrival is there: whoever has reset it since will find it
            self._told = True
            self._on_arrival()

    def _parts(self, key: RootKey) -> Parts:
        """Of the version that the key names, or of the combination of several."""
        keys = [key._replace(digest=digest) for digest in digests_of(key.digest or "")]
        return combined([read_adapter(self._source(one), self.spec) for one in keys]).parts

    def _give(self, jobs: queue.SimpleQueue[Callable[[], object] | None], job: Callable[[], object]) -> None:
        with self._settled:
            self._open += 1
        jobs.put(job)

    def _thread(self, jobs: queue.SimpleQueue[Callable[[], object] | None], name: str) -> threading.Thread:
        thread = threading.Thread(target=self._work, args=(jobs,), name=name, daemon=True)
        thread.start()
        return thread

    def _work(self, jobs: queue.SimpleQueue[Callable[[], object] | None]) -> None:
        while (job := jobs.get()) is not None:
            try:
                job()
            except Exception:  # a write to the disk tier: a cache may miss one, but never a loader
                log.exception("a job of the adapter loader failed")
            del job
            with self._settled:
                self._open -= 1
                if not self._open:
                    self._settled.notify_all()
