"""Rank 0's side: tells the other ranks what its scheduler has decided, before it does it itself."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from softmux.engine.arena import Empty, pageable
from softmux.engine.host_adapter import HostAdapter
from softmux.engine.layout import Layout
from softmux.engine.parallel.cut import Cut
from softmux.engine.parallel.orders import Drop, End, Laid, Load, Order, Run, Save, Seat, run_of
from softmux.scheduler.batch import Batch
from softmux.scheduler.radix import RootKey
from softmux.scheduler.rows import Ints, Step


class Leader:
    """All but `give` belongs to the engine's thread. Orders arrive in their order, before anything that follows them.

    An adapter is given to all ranks before rank 0's own scheduler hears that it is there: none waits for it in a step.
    """

    def __init__(self, endpoints: Sequence[tuple[str, str]], cuts: Sequence[Cut]) -> None:
        """`endpoints`: of each other rank, where it hears orders, and where it is given adapters. `cuts`: of each rank,
        the first included, what it has of the model."""
        context: Any = zmq.Context.instance()
        self._cuts = cuts
        self._encoder = msgspec.msgpack.Encoder()
        self._orders = [_bound(context, zmq.PUSH, orders) for orders, _ in endpoints]
        self._gifts = [_bound(context, zmq.REQ, gifts) for _, gifts in endpoints]
        self._giving = threading.Lock()
        self._serials = itertools.count(1)
        self._dropped: list[int] = []
        self._bare: list[int] = []

    def give(self, whole: HostAdapter, empty: Empty = pageable) -> HostAdapter:
        """Hands every rank its part of an adapter; rank 0's, in memory from `empty`, once all others have theirs. From
        any thread. Where a part can't be made, nobody is given any."""
        own = self._cuts[0].adapter(whole, empty)
        parts = [cut.adapter(whole).frames() for cut in self._cuts[1:]]
        with self._giving:
            own.serial = next(self._serials)
            for socket, part in zip(self._gifts, parts, strict=True):
                socket.send_multipart([own.serial.to_bytes(8, "little"), *part])
            for socket in self._gifts:
                socket.recv()
        return own

    # --- orders ------------------------------------------------------------------------------------------------------

    def replay(self, batch: Batch, deltas: Ints | None) -> None:
        self._tell(run_of(batch, deltas))

    def replay_columns(self, decodes: Step) -> None:
        """As `replay`, of rows that no batch has: a bench's."""
        self._tell(Run(decodes.tobytes(), None, None, False))

    def run(self, batch: Batch, layout: Layout, entries: tuple[Ints, Ints, Ints], serials: dict[RootKey, int]) -> None:
        self._tell(run_of(batch, None, Laid.of(layout, entries, serials)))

    def load(self, serial: int, start: int, slots: list[int]) -> None:
        self._tell(Load(serial, start, slots))

    def save(self, serial: int, slots: list[int]) -> None:
        self._tell(Save(serial, slots))

    def seat(self, slot: int, serial: int, begin: int) -> None:
        self._tell(Seat(slot, serial, begin))

    def drop(self, serial: int) -> None:
        """The adapter is let go, once what has been scheduled by now is launched: see `flush`."""
        self._dropped.append(serial)

    def drop_prefix(self, serial: int) -> None:
        """Its computed keys and values are, likewise."""
        self._bare.append(serial)

    def flush(self) -> None:
        """A step has been launched."""
        if self._dropped or self._bare:
            self._tell(Drop(self._dropped, self._bare))
            self._dropped, self._bare = [], []

    def close(self) -> None:
        self._tell(End())
        for socket in (*self._orders, *self._gifts):
            socket.close(linger=1000)

    def _tell(self, order: Order) -> None:
        told = self._encoder.encode(order)
        for socket in self._orders:
            socket.send(told)


def _bound(context: Any, kind: int, endpoint: str) -> Any:
    socket = context.socket(kind)
    socket.set_hwm(0)
    socket.bind(endpoint)
    return socket
