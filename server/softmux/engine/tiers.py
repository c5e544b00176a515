"""Adapter tiers below the GPU: host memory, then disk, then wherever versions are stored. Loading is off the step."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch

from softmux.engine.arena import Empty, HostArena, pageable
from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.disk import DiskTier
from softmux.engine.durations import Durations
from softmux.engine.heads import HeadShape
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import KVPool, PrefixKV
from softmux.engine.loader import AdapterLoader, AdapterSource
from softmux.engine.parallel.leader import Leader
from softmux.engine.transfer import Landing, Piece
from softmux.errors import BlobDamaged, InternalError, SoftmuxError
from softmux.scheduler.batch import PrefixLoad, PrefixSave
from softmux.scheduler.radix import RootKey
from softmux.scheduler.shelf import Room
from softmux.types import ModelSpec

__all__ = ["AdapterSource", "AdapterTiers", "TierCounts"]

_HOST = torch.device("cpu")

_PREFETCHED = 512
"""Adapters that are loading, or loaded and waited for, before their sequence's turn; others load at their turn."""

_LEAST_SLAB, _FIRST_SLAB = 1 << 20, 256 << 20
"""Bytes of host memory that are page-locked at the start; more is, as it is needed, on the loader's threads."""
_MOST_SPENT = 256
"""Adapters, or their computed KV, that wait for a load to let go of them."""


@dataclass(slots=True)
class TierCounts:
    """Loads by the tier that had the adapter, and how long they took, in seconds. `damaged`: those that failed
    because a file in the registry is lost, or is not what its hash says."""

    loads: dict[str, int] = field(default_factory=lambda: {"host": 0, "disk": 0, "registry": 0})
    seconds: Durations = field(default_factory=Durations)
    damaged: int = 0


@dataclass(slots=True)
class _Saving:
    """Computed KV on its way to host memory."""

    key: RootKey
    host: HostAdapter
    prefix: PrefixKV
    landing: Landing


class AdapterTiers:
    """Implements `softmux.scheduler.scheduler.AdapterShelf`. All but the loader belongs to the engine's thread.

    Host memory is kept under `budget` bytes, least recently used first; what running sequences hold stays even beyond
    it. `on_arrival` is called from the loader's threads when `arrivals` has news, to wake an idle loop.

    `gpu`: host memory is page-locked, from which a GPU copies by itself, and an adapter's computed KV is kept only
    from its second computation on, and never on disk. A GPU computes a 20-vector prompt within a step's other work in
    little time, while its KV takes many times its vectors' memory; so what is used once, or stays in the GPU's own
    cache, costs neither, and what keeps coming back is copied (docs/performance.md has the arithmetic). It takes the
    memory that adapters leave, and older KV's, but no adapter's: eight of these lie where one's KV does. A CPU keeps it
    at once, and on disk, too: there computing is dear, and a copy nearly free.
    """

    def __init__(
        self,
        *,
        spec: ModelSpec,
        dtype: torch.dtype,
        kv_dtype: torch.dtype | None = None,
        budget: int,
        gpu: bool = False,
        source: AdapterSource,
        disk: DiskTier | None = None,
        slots: DeltaSlots | None = None,
        readers: int = 1,
        on_arrival: Callable[[], None] = lambda: None,
    ) -> None:
        self.budget = budget
        self.slots = slots or DeltaSlots(spec.linears, slots=0, largest_rank=0, room=0, dtype=dtype, device=_HOST)
        self._keep_at = 2 if gpu else 1
        first = min(max(budget, _LEAST_SLAB), _FIRST_SLAB)
        self._growing = False
        self._spent: deque[object] = deque()
        pinned = torch.cuda.is_available()
        self._arena = HostArena(pinned=pinned, first_slab=first, spent=self._spent) if gpu else None
        self._empty: Empty = self._arena.empty if self._arena is not None else pageable
        self._host: dict[RootKey, HostAdapter] = {}
        self._idle: OrderedDict[RootKey, None] = OrderedDict()
        """Those of `_host` that nothing holds or awaits, least recently used first."""
        self._spare: OrderedDict[RootKey, None] = OrderedDict()
        """Those of them, on a GPU, whose KV could be computed again: it gives way before any adapter does."""
        self._loading: set[RootKey] = set()
        self._failed: dict[RootKey, SoftmuxError] = {}
        self._awaited: set[RootKey] = set()
        self._expected: deque[RootKey] = deque()
        self._spare_bytes = 0
        """Of that KV."""
        self._saving: deque[_Saving] = deque()
        self._saving_bytes = 0
        self._promised: dict[RootKey, tuple[PrefixKV, int]] = {}
        """What `compiled` has counted since the step began: it is there for `load` (with its serial), even if it is
        let go in between."""
        self.orders: Leader | None = None
        """Tells the other ranks what becomes of their parts, once they listen."""
        self.host_bytes = 0
        self.counts = TierCounts()
        self.loader = AdapterLoader(
            spec=spec, dtype=dtype, kv_dtype=kv_dtype or dtype, empty=self._empty, source=source, disk=disk,
            readers=readers, on_arrival=on_arrival, spent=self._spent,
        )  # fmt: skip

    def close(self) -> None:
        """Ends the loader's threads after the jobs they have."""
        self.loader.close()

    # --- what the scheduler asks -------------------------------------------------------------------------------------

    def expect(self, adapter: RootKey) -> None:
        """A sequence has been queued that will need it: its loading begins, if not too many are ahead."""
        if adapter in self._host:
            self._touch(adapter)
        elif adapter not in self._loading and adapter not in self._failed:
            self._expected.append(adapter)
            self._prefetch()

    def ready(self, adapter: RootKey) -> bool:
        error = self._failed.pop(adapter, None)
        if error is not None:
            raise error
        if adapter in self._host:
            self._touch(adapter)
            return True
        self._load(adapter)
        return False

    def compiled(self, adapter: RootKey) -> int:
        host = self._host[adapter]
        if host.prefix is not None:
            self._promised[adapter] = host.prefix, host.serial
        return host.compiled

    def room(self, adapter: RootKey) -> Room:
        host = self._host.get(adapter)
        return "none" if host is None or host.delta is None else self.slots.room(adapter, host.delta)

    def hold(self, adapter: RootKey) -> int:
        host = self._host[adapter]
        if adapter in self._awaited:
            self._awaited.discard(adapter)
        elif not host.holds:
            self.counts.loads["host"] += 1
        host.holds += 1
        self._busy(adapter)
        if host.delta is None:
            return -1
        before = self.slots.loads
        slot = self.slots.hold(adapter, host.delta)
        if self.orders is not None and self.slots.loads > before:
            self.orders.seat(slot, host.serial, self.slots.begin_of(adapter))
        return slot

    def release(self, adapter: RootKey) -> None:
        host = self._host[adapter]
        host.holds -= 1
        if host.delta is not None:
            self.slots.release(adapter)
        self._let_go(adapter)
        self._shrink()

    # --- what the step asks ------------------------------------------------------------------------------------------

    def vectors(self, adapter: RootKey) -> torch.Tensor:
        """`[k, hidden]` of an adapter that a running sequence holds."""
        vectors = self._host[adapter].vectors
        if vectors is None:
            raise InternalError("a sequence names learned vectors of an adapter that has none")
        return vectors

    def serials(self, adapters: Iterable[RootKey]) -> dict[RootKey, int]:
        """Of adapters that running sequences hold."""
        return {adapter: self._host[adapter].serial for adapter in adapters}

    def head_shape(self, adapter: RootKey) -> HeadShape:
        """Of the head of an adapter that a running sequence holds."""
        shape = self._host[adapter].head_shape
        if shape is None:
            raise InternalError("a sequence is to be read by an adapter's head that has none")
        return shape

    def head(self, adapter: RootKey) -> torch.Tensor:
        """The rows that `head_shape` tells of."""
        head = self._host[adapter].head
        assert head is not None, "`head_shape` has been asked before"
        return head

    def load(self, loads: Sequence[PrefixLoad], pool: KVPool) -> None:
        """Copies prefixes into the slots that the scheduler has chosen for them."""
        pieces = []
        for load in loads:
            prefix, serial = self._promised[load.adapter]
            pieces.append(Piece(prefix, load.start, load.slots))
            if self.orders is not None:
                self.orders.load(serial, load.start, load.slots)
        pool.load(pieces)

    def save(self, saves: Sequence[PrefixSave], pool: KVPool) -> None:
        """A step that has been launched computes these adapters' leading virtual tokens: keeps their KV, where that
        pays. It counts as `compiled` once it has arrived, which is now or when a later `arrivals` finds it there."""
        pieces: list[Piece] = []
        begun: list[tuple[RootKey, HostAdapter]] = []
        for save in saves:
            host = self._host.get(save.adapter)
            if host is None or host.prefix is not None:
                continue
            host.computed += 1
            if host.computed < self._keep_at:
                continue
            shape = pool.prefix_shape(len(save.slots))
            size = math.prod(shape) * pool.dtype.itemsize
            prefix = self._room(shape, pool.dtype) if self._leaves(self._saving_bytes + size) else None
            if prefix is None:
                continue  # adapters have it all, or it is being made larger and the next computation finds it
            self._saving_bytes += prefix.nbytes
            pieces.append(Piece(prefix, 0, save.slots))
            begun.append((save.adapter, host))
            if self.orders is not None:
                self.orders.save(host.serial, save.slots)
        if pieces:
            landing = pool.save(pieces)
            for (key, host), piece in zip(begun, pieces, strict=True):
                self._saving.append(_Saving(key, host, piece.values, landing))
            self._land()

    # --- what comes and goes -----------------------------------------------------------------------------------------

    def adopt(self, adapter: RootKey, host: HostAdapter) -> None:
        """Puts an adapter that is at hand (an upload under admission) into host memory, for a sequence that is about
        to wait for it."""
        self._keep(adapter, host if self._arena is None else host.moved(self._empty))

    def forget(self, adapter: RootKey) -> None:
        """Drops an adapter that nothing holds (an upload that was refused)."""
        host = self._host.get(adapter)
        if host is not None and not host.holds:
            self._awaited.discard(adapter)
            self._busy(adapter)
            self.slots.forget(adapter)
            self._drop(adapter)

    @property
    def resident(self) -> int:
        return len(self._host)

    def at_hand(self, adapter: RootKey) -> bool:
        """Whether it is in host memory: a copy away from a step."""
        return adapter in self._host

    def tier(self, adapter: RootKey) -> str:
        """Where a request that comes now finds it: host, disk or registry."""
        return "host" if adapter in self._host else "disk" if self.loader.has_on_disk(adapter) else "registry"

    def arrivals(self) -> list[RootKey]:
        """Adapters whose loading has ended, well or badly, since the last call."""
        self._promised.clear()
        self._land()
        ended: list[RootKey] = []
        for arrival in self.loader.take():
            self._loading.discard(arrival.key)
            ended.append(arrival.key)
            if arrival.adapter is None:
                self._failed[arrival.key] = arrival.error or InternalError("loading an adapter failed")
                self.counts.damaged += isinstance(arrival.error, BlobDamaged)
                continue
            self.counts.loads[arrival.tier] += 1
            self.counts.seconds.add(arrival.seconds)
            self._keep(arrival.key, arrival.adapter)
            if self.orders is not None:
                continue  # what is this process's alone is no adapter for the disk
            if arrival.tier == "registry" and (self._arena is not None or not arrival.adapter.computes):
                self.loader.write(arrival.key, arrival.adapter)
        if ended:
            self._shrink()
        if self._expected:
            self._prefetch()
        if not self._loading:
            self._spent.clear()
        return ended

    def await_only(self, waited_for: Callable[[RootKey], bool]) -> None:
        """What has arrived stays until a sequence holds it, or, told here once a step, nobody waits for it any more;
        a failure that nobody waits for is forgotten, so that the next request tries again."""
        if self.host_bytes > self.budget or len(self._awaited) >= _PREFETCHED:
            for key in [key for key in self._awaited if not waited_for(key)]:
                self._awaited.discard(key)
                self._let_go(key)
            self._shrink()
        if self._failed:
            for key in [key for key in self._failed if not waited_for(key)]:
                del self._failed[key]

    # --- within ------------------------------------------------------------------------------------------------------

    def _prefetch(self) -> None:
        while self._expected and len(self._loading) + len(self._awaited) < _PREFETCHED:
            adapter = self._expected.popleft()
            if adapter not in self._host:
                self._load(adapter)

    def _load(self, adapter: RootKey) -> None:
        if adapter not in self._loading:
            self._loading.add(adapter)
            self.loader.load(adapter)

    def _land(self) -> None:
        """Takes up the computed KV that has arrived in host memory."""
        while self._saving and self._saving[0].landing.landed():
            saving = self._saving.popleft()
            self._saving_bytes -= saving.prefix.nbytes
            host = saving.host
            if self._host.get(saving.key) is not host or host.prefix is not None:
                continue  # let go meanwhile, or saved twice
            if not self._leaves(saving.prefix.nbytes):  # what was to give way has come into use
                self._spend(saving.prefix)
                if self.orders is not None:
                    self.orders.drop_prefix(host.serial)
                continue
            host.prefix = saving.prefix
            self.host_bytes += saving.prefix.nbytes
            self._let_go(saving.key)
            if self._arena is None and self.orders is None:
                self.loader.write(saving.key, host)
            self._shrink()

    def _leaves(self, size: int) -> bool:
        """Whether what adapters, and KV that is in use, leave of the budget is `size` bytes at least."""
        return self._arena is None or self.host_bytes - self._spare_bytes + size <= self.budget

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor | None:
        if self._arena is None:
            return pageable(shape, dtype)
        room = self._arena.take(shape, dtype)
        if room is None and not self._growing:  # one slab for all that found no room: slabs are never given back
            self._growing = True
            self.loader.call(functools.partial(self._grow, self._arena, math.prod(shape) * dtype.itemsize))
        return room

    def _grow(self, arena: HostArena, least: int) -> None:
        try:
            arena.grow(least)
        finally:
            self._growing = False

    def _keep(self, key: RootKey, host: HostAdapter) -> None:
        self._awaited.add(key)
        self._busy(key)
        if key not in self._host:
            self._host[key] = host
            self.host_bytes += host.nbytes
        elif self.orders is not None:
            self.orders.drop(host.serial)

    def _touch(self, key: RootKey) -> None:
        if key in self._idle:
            self._idle.move_to_end(key)
        if key in self._spare:
            self._spare.move_to_end(key)

    def _let_go(self, key: RootKey) -> None:
        host = self._host.get(key)
        if host is None or host.holds or key in self._awaited:
            return
        self._idle[key] = None
        computed = host.prefix is not None and host.vectors is not None and not host.trained
        if self._arena is not None and computed and key not in self._spare:
            self._spare[key] = None
            self._spare_bytes += _bytes_of(host.prefix)

    def _busy(self, key: RootKey) -> None:
        self._idle.pop(key, None)
        if key in self._spare:
            del self._spare[key]
            self._spare_bytes -= _bytes_of(self._host[key].prefix)

    def _shrink(self) -> None:
        while self.host_bytes > self.budget and self._spare:
            key, _ = self._spare.popitem(last=False)
            host = self._host[key]
            prefix, host.prefix = host.prefix, None
            self._spare_bytes -= _bytes_of(prefix)
            self.host_bytes -= _bytes_of(prefix)
            self._spend(prefix)
            if self.orders is not None:
                self.orders.drop_prefix(host.serial)
        while self.host_bytes > self.budget and self._idle:
            key, _ = self._idle.popitem(last=False)
            self._drop(key)

    def _drop(self, key: RootKey) -> None:
        host = self._host.pop(key)
        self.host_bytes -= host.nbytes
        self._spend(host)
        if self.orders is not None:
            self.orders.drop(host.serial)
        if self._arena is None:
            self.slots.forget(key)  # there a slot's weights are these

    def _spend(self, dropped: object) -> None:
        """The next load lets go of it, and not this thread: with a tensor's last holder the interpreter changes hands,
        and this thread would wait for it behind the readers. Where no load comes, so much is kept and no more."""
        self._spent.append(dropped)
        if len(self._spent) > _MOST_SPENT:
            self._spent.clear()

    def check_integrity(self) -> None:
        self.slots.check_integrity()
        assert self.host_bytes == sum(host.nbytes for host in self._host.values())
        assert all(host.holds >= 0 for host in self._host.values())
        idle = {key for key, host in self._host.items() if not host.holds and key not in self._awaited}
        assert idle == set(self._idle), "what nothing holds or awaits can be let go, and nothing else"
        assert set(self._spare) <= idle
        assert self._spare_bytes == sum(_bytes_of(self._host[key].prefix) for key in self._spare)
        assert self._saving_bytes == sum(saving.prefix.nbytes for saving in self._saving)


def _bytes_of(prefix: PrefixKV | None) -> int:
    return 0 if prefix is None else prefix.nbytes
