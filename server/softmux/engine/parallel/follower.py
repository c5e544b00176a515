"""Every other rank's side: does what rank 0 says, on its own part of the model."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import msgspec
import torch
import zmq

from softmux.engine.arena import Empty, HostArena, pageable
from softmux.engine.delta_slots import DeltaSlots
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.kv import KVPool
from softmux.engine.parallel.orders import Drop, End, Load, Order, Run, Save, Seat, key_of
from softmux.engine.transfer import Landing, Piece
from softmux.errors import InternalError
from softmux.scheduler.radix import RootKey

log = logging.getLogger(__name__)

_WATCH_MILLISECONDS = 1000
_SLAB = 64 << 20


class Shares:
    """The rank's parts of adapters, in host memory, by serial. `give` is the giving thread's, all else the loop's.

    What they may take is rank 0's to say: it lets go of the same adapters as its own host tier.
    """

    def __init__(self, slots: DeltaSlots, *, pinned: bool) -> None:
        self.slots = slots
        self._arena = HostArena(pinned=torch.cuda.is_available(), first_slab=_SLAB) if pinned else None
        self.empty: Empty = pageable if self._arena is None else self._arena.empty
        self._lock = threading.Lock()
        self._held: dict[RootKey, HostAdapter] = {}
        self._landings: dict[RootKey, Landing] = {}

    def __len__(self) -> int:
        return len(self._held)

    def give(self, serial: int, adapter: HostAdapter) -> None:
        with self._lock:
            self._held[key_of(serial)] = adapter

    def of(self, serial: int) -> HostAdapter:
        return self._of(key_of(serial))

    def vectors(self, adapter: RootKey) -> torch.Tensor:
        vectors = self._of(adapter).vectors
        if vectors is None:
            raise InternalError("a step names learned vectors of an adapter that has none")
        return vectors

    def load(self, order: Load, pool: KVPool) -> None:
        key = key_of(order.serial)
        landing = self._landings.pop(key, None)
        if landing is not None:
            while not landing.landed():  # rank 0's has, or it would not ask
                time.sleep(1e-4)
        prefix = self._of(key).prefix
        if prefix is None:
            raise InternalError("a step needs keys and values that this rank does not have")
        pool.fence()  # rank 0's device may be ahead of this one
        pool.load([Piece(prefix, order.start, order.slots)])

    def save(self, order: Save, pool: KVPool) -> None:
        key = key_of(order.serial)
        prefix = self._room(pool.prefix_shape(len(order.slots)), pool.dtype)
        self._landings[key] = pool.save([Piece(prefix, 0, order.slots)])
        self._of(key).prefix = prefix

    def drop(self, order: Drop) -> list[RootKey]:
        for serial in order.prefixes:
            key = key_of(serial)
            if key in self._held:
                self._of(key).prefix = None
                self._landings.pop(key, None)
        keys = [key_of(serial) for serial in order.serials]
        with self._lock:
            for key in keys:
                self._held.pop(key, None)
                self._landings.pop(key, None)
        return keys

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Within a step, so that no slab is made for it."""
        if self._arena is None:
            return pageable(shape, dtype)
        room = self._arena.take(shape, dtype)
        return torch.empty(shape, dtype=dtype, pin_memory=True) if room is None else room

    def _of(self, key: RootKey) -> HostAdapter:
        with self._lock:
            return self._held[key]


class Follower:
    """`run` returns when rank 0 says so, or is gone. Where an adapter can't be taken, the process ends: rank 0 would
    wait for its receipt for ever, and with it every adapter that comes after."""

    def __init__(self, runner: Any, orders: str, gifts: str) -> None:
        self._runner = runner
        self.shares = Shares(runner.tiers.slots, pinned=runner.device.type == "cuda")
        runner.tiers = self.shares
        context: Any = zmq.Context.instance()
        self._orders = context.socket(zmq.PULL)
        self._orders.set_hwm(0)
        self._orders.connect(orders)
        self._gifts = context.socket(zmq.REP)
        self._gifts.connect(gifts)
        self._decoder = msgspec.msgpack.Decoder(Order)
        threading.Thread(target=self._take_gifts, name="gifts", daemon=True).start()

    def run(self) -> None:
        parent = os.getppid()
        while True:
            if not self._orders.poll(_WATCH_MILLISECONDS):
                if os.getppid() != parent:
                    log.warning("rank 0 is gone: this rank ends, too")
                    return
                continue
            order = self._decoder.decode(self._orders.recv())
            if isinstance(order, End):
                return
            self._obey(order)

    def _obey(self, order: Order) -> None:
        runner = self._runner
        match order:
            case Run():
                runner.follow(order)
            case Load():
                self.shares.load(order, runner.pool)
            case Save():
                self.shares.save(order, runner.pool)
            case Seat():
                delta = self.shares.of(order.serial).delta
                if delta is None:
                    raise InternalError("a slot is given to an adapter that needs none")
                runner.deltas.slots.seat(order.slot, order.begin, delta)
            case Drop():
                for key in self.shares.drop(order):
                    runner.vocabulary.forget(key)
            case End():
                pass

    def _take_gifts(self) -> None:
        try:
            self._take_each()
        except Exception:
            log.exception("an adapter can't be taken: this rank ends")
            logging.shutdown()
            os._exit(1)

    def _take_each(self) -> None:
        if self._runner.device.type == "cuda":
            torch.cuda.set_device(self._runner.device)  # a thread begins on GPU 0, which is another's
        while True:
            frames: Sequence[Any] = self._gifts.recv_multipart(copy=False)
            serial = int.from_bytes(frames[0].buffer, "little")
            self.shares.give(serial, HostAdapter.of_frames([frame.buffer for frame in frames[1:]], self.shares.empty))
            self._gifts.send(b"")
