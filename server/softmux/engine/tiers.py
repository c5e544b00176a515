"""Adapter tiers below the GPU: host memory, then disk, then wherever versions are stored. Loading is off the step."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from softmux.engine.disk import DiskTier
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import PrefixKV
from softmux.errors import InternalError, SoftmuxError
from softmux.formats.folder import read_adapter
from softmux.scheduler.radix import RootKey
from softmux.types import ModelSpec

log = logging.getLogger(__name__)

AdapterSource = Callable[[RootKey], Mapping[str, bytes]]
"""Fetches a version's files by its key. Called on the loader's thread; raises a `SoftmuxError` in words."""


@dataclass(slots=True)
class _Arrival:
    key: RootKey
    adapter: HostAdapter | None
    error: SoftmuxError | None
    tier: str
    seconds: float


@dataclass(slots=True)
class TierCounts:
    """Loads by the tier that had the adapter, and how long they took, in seconds."""

    loads: dict[str, int] = field(default_factory=lambda: {"host": 0, "disk": 0, "registry": 0})
    seconds: list[float] = field(default_factory=list)


class AdapterTiers:
    """Implements `softmux.scheduler.scheduler.AdapterShelf`. All but the loader belongs to the engine's thread.

    Host memory is kept under `budget` bytes, least recently used first; what running sequences hold stays even beyond
    it. `pinned`: in page-locked memory, from which a GPU copies by itself. `on_arrival` is called from the loader's
    thread when `arrivals` has news, to wake an idle loop.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        dtype: torch.dtype,
        budget: int,
        pinned: bool = False,
        source: AdapterSource,
        disk: DiskTier | None = None,
        on_arrival: Callable[[], None] = lambda: None,
    ) -> None:
        self._spec = spec
        self._dtype = dtype
        self._budget = budget
        self._pinned = pinned
        self._source = source
        self._disk = disk
        self._on_arrival = on_arrival
        self._host: OrderedDict[RootKey, HostAdapter] = OrderedDict()
        self._loading: set[RootKey] = set()
        self._failed: dict[RootKey, SoftmuxError] = {}
        self._awaited: set[RootKey] = set()
        self._arrived: queue.SimpleQueue[_Arrival] = queue.SimpleQueue()
        self._jobs: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self.host_bytes = 0
        self.counts = TierCounts()
        self._loader = threading.Thread(target=self._work, name="adapter-loader", daemon=True)
        self._loader.start()

    def close(self) -> None:
        """Ends the loader's thread after the jobs it has."""
        self._jobs.put(None)
        self._loader.join()

    # --- what the scheduler asks -------------------------------------------------------------------------------------

    def ready(self, adapter: RootKey) -> bool:
        error = self._failed.pop(adapter, None)
        if error is not None:
            raise error
        if adapter in self._host:
            self._host.move_to_end(adapter)
            return True
        if adapter not in self._loading:
            self._loading.add(adapter)
            self._jobs.put(lambda: self._load(adapter))
        return False

    def compiled(self, adapter: RootKey) -> int:
        return self._host[adapter].compiled

    def hold(self, adapter: RootKey) -> None:
        host = self._host[adapter]
        if adapter in self._awaited:
            self._awaited.discard(adapter)
        elif not host.holds:
            self.counts.loads["host"] += 1
        host.holds += 1

    def release(self, adapter: RootKey) -> None:
        self._host[adapter].holds -= 1
        self._shrink()

    # --- what the step asks ------------------------------------------------------------------------------------------

    def vectors(self, adapter: RootKey) -> torch.Tensor:
        """`[k, hidden]` of an adapter that a running sequence holds."""
        vectors = self._host[adapter].vectors
        if vectors is None:
            raise InternalError("a sequence names learned vectors of an adapter that has none")
        return vectors

    def prefix(self, adapter: RootKey) -> PrefixKV:
        prefix = self._host[adapter].prefix
        assert prefix is not None, "the scheduler loads only what `compiled` has counted"
        return prefix

    def keep_prefix(self, adapter: RootKey, prefix: PrefixKV) -> None:
        """Keeps the KV a step has computed for an adapter's leading virtual tokens, in this tier and the next."""
        host = self._host.get(adapter)
        if host is None or host.prefix is not None:
            return
        before = host.nbytes
        host.prefix = prefix
        self.host_bytes += host.nbytes - before
        self._write_behind(adapter, host)
        self._shrink()

    def adopt(self, adapter: RootKey, host: HostAdapter) -> None:
        """Puts an adapter that is at hand (an upload under admission) into host memory, for a sequence that is about
        to wait for it."""
        self._awaited.add(adapter)
        if adapter not in self._host:
            self._host[adapter] = host
            self.host_bytes += host.nbytes

    def forget(self, adapter: RootKey) -> None:
        """Drops an adapter that nothing holds (an upload that was refused)."""
        host = self._host.get(adapter)
        if host is not None and not host.holds:
            self._evict(adapter)

    @property
    def resident(self) -> int:
        return len(self._host)

    # --- loading -----------------------------------------------------------------------------------------------------

    def arrivals(self) -> list[RootKey]:
        """Adapters whose loading has ended, well or badly, since the last call."""
        ended: list[RootKey] = []
        while True:
            try:
                arrival = self._arrived.get_nowait()
            except queue.Empty:
                return ended
            self._loading.discard(arrival.key)
            ended.append(arrival.key)
            if arrival.adapter is None:
                self._failed[arrival.key] = arrival.error or InternalError("loading an adapter failed")
                continue
            self.counts.loads[arrival.tier] += 1
            self.counts.seconds.append(arrival.seconds)
            self.adopt(arrival.key, arrival.adapter)
            if arrival.adapter.prefix is not None and not arrival.adapter.on_disk:
                self._write_behind(arrival.key, arrival.adapter)
            self._shrink()

    def _load(self, key: RootKey) -> None:
        began = time.perf_counter()
        adapter, error, tier = None, None, "disk"
        try:
            adapter = self._disk.get(key) if self._disk is not None else None
            if adapter is None:
                tier = "registry"
                parts = read_adapter(self._source(key), self._spec).parts
                adapter = HostAdapter.from_parts(parts, self._dtype)
            if self._pinned:
                adapter.pin()
        except SoftmuxError as known:
            error = known
        except Exception as unknown:
            log.exception("loading %s failed", key.digest)
            error = InternalError(f"loading adapter {key.digest} failed: {unknown}")
        self._arrived.put(_Arrival(key, adapter, error, tier, time.perf_counter() - began))
        self._on_arrival()

    def _write_behind(self, key: RootKey, adapter: HostAdapter) -> None:
        disk = self._disk
        if disk is not None and not adapter.on_disk:
            adapter.on_disk = True
            copied = _copied(adapter)

            def write() -> None:
                copied()
                disk.put(key, adapter)

            self._jobs.put(write)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # a write to the disk tier: a cache may miss one, but never a loader
                log.exception("a job of the adapter loader failed")

    def await_only(self, waited_for: Callable[[RootKey], bool]) -> None:
        """What has arrived stays until a sequence holds it, or, told here once a step, nobody waits for it any more;
        a failure that nobody waits for is forgotten, so that the next request tries again."""
        for key in [key for key in self._awaited if not waited_for(key)]:
            self._awaited.discard(key)
        for key in [key for key in self._failed if not waited_for(key)]:
            del self._failed[key]

    def _shrink(self) -> None:
        if self.host_bytes <= self._budget:
            return
        for key in list(self._host):
            if self.host_bytes <= self._budget:
                return
            if not self._host[key].holds and key not in self._awaited:
                self._evict(key)

    def _evict(self, key: RootKey) -> None:
        self.host_bytes -= self._host.pop(key).nbytes

    def check_integrity(self) -> None:
        assert self.host_bytes == sum(host.nbytes for host in self._host.values())
        assert all(host.holds >= 0 for host in self._host.values())


def _copied(adapter: HostAdapter) -> Callable[[], None]:
    """Waits until the device has written the adapter's prefix into host memory."""
    if adapter.prefix is None or not adapter.prefix.is_pinned():
        return lambda: None
    event = torch.cuda.Event()
    event.record()
    return event.synchronize
