"""Slots: where what running rows' adapters change of the base (their `Delta`s) lies while they run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from softmux.engine.delta import UNIT, Delta
from softmux.errors import InvalidAdapter
from softmux.scheduler.radix import RootKey
from softmux.scheduler.shelf import Room
from softmux.types import LinearShape

ENTRY = 4
"""int32 numbers of `DeltaSlots.table` for each module of each slot: rank (0: the module is left alone), where a and b
begin in `weights`, counted in `UNIT` numbers, and one spare."""


class DeltaSlots:
    """Gives each adapter that rows run on a slot, and on a GPU room in `weights`, one tensor made at the start, so that
    neither moves under a captured graph. An adapter keeps both when its last row ends; the least recently used of those
    that no row runs on gives way.

    A slot is given to another only when every row that ran on it has ended and its steps have landed, so nothing in
    flight reads what is written into it.
    """

    def __init__(
        self, linears: Sequence[LinearShape], *, slots: int, largest_rank: int, room: int, dtype: torch.dtype,
        device: torch.device,
    ) -> None:  # fmt: skip
        """`room`: bytes of `weights`. 0, as on a CPU: there are none, a slot's weights are the host tier's own."""
        self.device = device
        self.largest_rank = largest_rank
        self.columns = {linear.name: column for column, linear in enumerate(linears)}
        self.outputs = [linear.outputs for linear in linears]
        self.deltas: list[Delta | None] = [None] * slots
        """By slot, on the device."""
        self.seatings = [0] * slots
        """How often the slot has been given; with the slot's number it names what lies there."""
        self._slots: dict[RootKey, int] = {}
        self._holds: dict[RootKey, int] = {}
        self._idle: OrderedDict[RootKey, None] = OrderedDict()
        self._free = list(range(slots - 1, -1, -1))
        self.loads = 0
        numbers = room // dtype.itemsize // UNIT * UNIT
        self._copies = numbers > 0
        self.weights = torch.zeros(numbers, dtype=dtype, device=device)
        self.table = torch.zeros((slots, len(linears), ENTRY), dtype=torch.int32, device=device)
        self._room = _Extents(numbers)
        self._extents: dict[RootKey, tuple[int, int]] = {}
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._arriving: torch.cuda.Event | None = None
        self._staged: dict[int, Any] = {}

    # --- what the scheduler asks, through the tiers ------------------------------------------------------------------

    def room(self, adapter: RootKey, delta: Delta) -> Room:
        """Whether a row of the adapter can begin now. Raises `InvalidAdapter` where none ever can."""
        if adapter in self._holds:
            return "held"
        self._check(delta)
        if adapter in self._slots:
            return "free"
        if not self._free and not self._idle:
            return "full"
        return "free" if not self._copies or self._fits(delta) else "full"

    def hold(self, adapter: RootKey, delta: Delta) -> int:
        """The adapter's slot, for one more row of it. `room` has said that there is one."""
        self._holds[adapter] = self._holds.get(adapter, 0) + 1
        self._idle.pop(adapter, None)
        slot = self._slots.get(adapter)
        if slot is None:
            slot = self._place(adapter, delta)
        return slot

    def release(self, adapter: RootKey) -> None:
        """One row less runs on it, and no step in flight is that row's."""
        self._holds[adapter] -= 1
        if not self._holds[adapter]:
            del self._holds[adapter]
            self._idle[adapter] = None

    def forget(self, adapter: RootKey) -> None:
        """Drops an adapter that no row runs on."""
        if adapter in self._idle:
            self._evict(adapter)

    @property
    def capacity(self) -> int:
        """Slots in all."""
        return len(self.deltas)

    @property
    def resident(self) -> int:
        """Adapters that have a slot."""
        return len(self._slots)

    @property
    def in_use(self) -> int:
        """Of them, those that rows run on."""
        return len(self._holds)

    # --- what the step asks ------------------------------------------------------------------------------------------

    def await_arrivals(self) -> None:
        """What the current stream is given from here on finds every slot filled."""
        if self._arriving is not None:
            torch.cuda.current_stream(self.device).wait_event(self._arriving)
            self._arriving = None

    # --- within ------------------------------------------------------------------------------------------------------

    def _check(self, delta: Delta) -> None:
        unknown = next((update.name for update in delta.updates if update.name not in self.columns), None)
        if unknown is not None:  # out of the disk tier, admitted by another release
            raise InvalidAdapter(
                f"its LoRA acts on {unknown}, where none is served; train it without that module",
                param="adapter_config.json: target_modules",
            )
        if delta.largest_rank > self.largest_rank:
            raise InvalidAdapter(
                f"its LoRA has rank {delta.largest_rank}, and this server takes {self.largest_rank} at most; start it "
                f"with --max-lora-rank {delta.largest_rank}, or train a smaller one",
                param="adapter_config.json: r",
            )
        if self._copies and delta.data.numel() > self.weights.numel():
            raise InvalidAdapter(
                f"it takes {delta.data.nbytes:,} bytes of GPU memory, and this server has {self.weights.nbytes:,} for "
                "LoRAs and rows of tokens; start it with a larger --lora-bytes",
                param="adapter_model.safetensors",
            )

    def _fits(self, delta: Delta) -> bool:
        """Whether there is room in `weights` once all adapters that no row runs on have given way."""
        held = [extent for adapter, extent in self._extents.items() if adapter in self._holds]
        return _Extents.largest_gap(held, self.weights.numel()) >= delta.data.numel()

    def _place(self, adapter: RootKey, delta: Delta) -> int:
        if not self._free:
            self._evict(next(iter(self._idle)))
        slot = self._slots[adapter] = self._free.pop()
        self.seatings[slot] += 1
        self.loads += 1
        if not self._copies:
            self.deltas[slot] = delta
            return slot
        size = delta.data.numel()
        while (begin := self._room.take(size)) is None:
            self._evict(next(iter(self._idle)))
        self._extents[adapter] = (begin, size)
        self._copy(slot, begin, delta)
        return slot

    def begin_of(self, adapter: RootKey) -> int:
        """Where in `weights` what it has begins."""
        return self._extents.get(adapter, (0, 0))[0]

    def seat(self, slot: int, begin: int, delta: Delta) -> None:
        """Puts a delta where another process has said that it lies there. What the current stream was given by now may
        still read what was there."""
        self.seatings[slot] += 1
        if not self._copies:
            self.deltas[slot] = delta
            return
        if self._side is not None:
            self._side.wait_stream(torch.cuda.current_stream(self.device))
        self._copy(slot, begin, delta)

    def _copy(self, slot: int, begin: int, delta: Delta) -> None:
        """Beside the step in flight, which reads nothing of what is written."""
        entries = np.zeros(tuple(self.table.shape[1:]), np.int32)
        for update in delta.updates:
            column = self.columns[update.name]
            entries[column, :3] = update.rank, (begin + update.at) // UNIT, (begin + update.b_at) // UNIT
        told = torch.from_numpy(entries)
        region = self.weights[begin : begin + delta.data.numel()]
        self.deltas[slot] = delta.over(region)
        if self._side is None:
            region.copy_(delta.data)
            self.table[slot].copy_(told)
            return
        told = told.pin_memory()
        with torch.cuda.stream(self._side):
            region.copy_(delta.data, non_blocking=True)
            self.table[slot].copy_(told, non_blocking=True)
            self._arriving = torch.cuda.Event()
            self._arriving.record()
        self._staged[slot] = (told, delta)  # both stay until the slot is given again

    def _evict(self, adapter: RootKey) -> None:
        del self._idle[adapter]
        slot = self._slots.pop(adapter)
        self.deltas[slot] = None
        self._free.append(slot)
        extent = self._extents.pop(adapter, None)
        if extent is not None:
            self._room.give(*extent)

    def check_integrity(self) -> None:
        assert sorted([*self._slots.values(), *self._free]) == list(range(len(self.deltas))), "slots do not add up"
        assert set(self._holds) | set(self._idle) == set(self._slots)
        assert not set(self._holds) & set(self._idle)
        assert all(holds > 0 for holds in self._holds.values())
        self._room.check_integrity(list(self._extents.values()))


class _Extents:
    """Parts of a line of `size`: the first gap that is large enough is taken."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._gaps = [(0, size)] if size else []

    def take(self, size: int) -> int | None:
        """Where a part of that size begins from now on; None where there is no gap for it."""
        for number, (begin, gap) in enumerate(self._gaps):
            if gap >= size:
                self._gaps[number : number + 1] = [(begin + size, gap - size)] if gap > size else []
                return begin
        return None

    def give(self, begin: int, size: int) -> None:
        merged: list[tuple[int, int]] = []
        for start, gap in sorted([*self._gaps, (begin, size)]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + gap)
            else:
                merged.append((start, gap))
        self._gaps = merged

    @staticmethod
    def largest_gap(parts: Sequence[tuple[int, int]], size: int) -> int:
        """Of a line of `size` on which only `parts` are taken."""
        largest = at = 0
        for begin, part in sorted(parts):
            largest, at = max(largest, begin - at), begin + part
        return max(largest, size - at)

    def check_integrity(self, taken: Sequence[tuple[int, int]]) -> None:
        at = 0
        for begin, size in sorted([*self._gaps, *taken]):
            assert begin == at, "parts overlap, or one is lost"
            at += size
        assert at == self._size
