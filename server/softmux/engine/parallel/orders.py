"""What rank 0 tells the others: what to run with it, and what becomes of their parts of adapters. All of one host."""

from __future__ import annotations

import msgspec
import numpy as np

from softmux.engine.layout import Layout
from softmux.scheduler.batch import Batch
from softmux.scheduler.radix import RootKey
from softmux.scheduler.rows import Ints, Step

_LONGS = ("rows", "starts", "counts", "deltas", "ids", "positions", "slots", "wanted", "futures", "virtual", "vectors")


def key_of(serial: int) -> RootKey:
    """Under which a rank that is told of serials alone keeps what belongs to one."""
    return RootKey("", str(serial), "", "")


class Laid(msgspec.Struct, frozen=True, array_like=True):
    """A `Layout`, and what the slots' table lacks. Arrays are int64, end to end."""

    arrays: tuple[bytes, ...]
    sources: bytes
    adapters: tuple[int, ...]
    """Serials of the adapters that the virtual tokens belong to; `which` says whose each token is."""
    which: bytes
    entries: tuple[bytes, bytes, bytes]

    @classmethod
    def of(cls, layout: Layout, entries: tuple[Ints, Ints, Ints], serials: dict[RootKey, int]) -> Laid:
        adapters = list(serials)
        numbers = {key: number for number, key in enumerate(adapters)}
        which = np.array([numbers[key] for key in layout.adapters], np.int64)
        return cls(
            tuple(_bytes(getattr(layout, name)) for name in _LONGS), _bytes(layout.sources),
            tuple(serials.values()), _bytes(which), (_bytes(entries[0]), _bytes(entries[1]), _bytes(entries[2])),
        )  # fmt: skip

    def laid_out(self) -> Layout:
        keys = [key_of(serial) for serial in self.adapters]
        arrays = dict(zip(_LONGS, map(_longs, self.arrays), strict=True))
        none = np.empty(0, np.int64)
        return Layout(
            **arrays,
            sources=_longs(self.sources).reshape(-1, 2),
            adapters=[keys[number] for number in _longs(self.which).tolist()],
            heads=none,
            targets=[],
        )

    def table_entries(self) -> tuple[Ints, Ints, Ints]:
        rows, positions, slots = map(_longs, self.entries)
        return rows, positions, slots


class Run(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A step. `layout` None: it is replayed from the graph that fits `decodes` (`[4, rows]` int32), and `deltas`, by
    row, where there are any. `rows` choose a token each: greedily on every rank from the same logits, or, where the
    step is `special`, on rank 0, which hands all on."""

    decodes: bytes
    deltas: bytes | None
    rows: bytes | None
    special: bool
    layout: Laid | None = None

    def decode_step(self) -> Step:
        return np.frombuffer(self.decodes, np.int32).reshape(4, -1)

    def slots(self) -> Ints | None:
        return None if self.deltas is None else _longs(self.deltas)

    def choosing(self) -> Ints:
        return self.decode_step()[1].astype(np.int64) if self.rows is None else _longs(self.rows)


class Load(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Tokens from `start` on of an adapter's keys and values go into `slots` before the next step."""

    serial: int
    start: int
    slots: list[int]


class Save(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`slots` hold an adapter's keys and values, once the last step has run: they are kept."""

    serial: int
    slots: list[int]


class Seat(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """`slot` is this adapter's from now on, and what it changes of the base lies from `begin` on."""

    slot: int
    serial: int
    begin: int


class Drop(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """These adapters, and of `prefixes` the computed keys and values, are let go."""

    serials: list[int]
    prefixes: list[int]


class End(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """No more orders come."""


Order = Run | Load | Save | Seat | Drop | End


def run_of(batch: Batch, deltas: Ints | None, laid: Laid | None = None) -> Run:
    rows = batch.sampled[batch.choosing]
    special = bool((batch.table.plain_from[rows] > batch.lengths[batch.choosing]).any())
    return Run(
        _bytes(batch.decodes), None if deltas is None else _bytes(deltas),
        None if laid is None else _bytes(rows), special, laid,
    )  # fmt: skip


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _longs(data: bytes) -> Ints:
    return np.frombuffer(data, np.int64)
