"""Copies of a step between host memory and the device: prefixes into KV slots, learned vectors into the table, and
computed KV back to the host."""

from __future__ import annotations

import importlib.util
import logging
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from softmux.engine.device import to_device

log = logging.getLogger(__name__)

_OVER_PCIE = 32
_ON_DEVICE = 264
_TURNS = 4
_WORD = 8
_IN_PLACE = 4
"""Jobs of each program up to which a launch reads its table where it lies in page-locked memory: with more, it is sent
ahead, since each job would wait for its part of it over PCIe again."""


@dataclass(slots=True, frozen=True)
class Piece:
    """Tokens `start … start + len(slots)` of `values`, `[planes…, tokens, …]`, and their slots in a tensor
    `[planes…, slots, …]` of the same planes and token shape."""

    values: torch.Tensor
    start: int
    slots: Sequence[int]


class Landing(Protocol):
    """A copy on its way."""

    def landed(self) -> bool: ...


class Copies(Protocol):
    """How a step's copies are made. `axis` is where the tokens are, in `near` and in every piece's values."""

    def scatter(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece], after: torch.cuda.Event | None) -> None:
        """Host values into `near`; whatever the current stream is given from here on finds them there. They may be
        written while steps in flight run, but not before `after`."""

    def gather(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece]) -> Landing:
        """`near`'s values, as the current stream has left them by now, into the pieces' (in host memory)."""


class _Event:
    """Lands when the device has done what `stream` (the current one) has been given; `kept` stays alive until then."""

    def __init__(self, kept: object = None, stream: torch.cuda.Stream | None = None) -> None:
        self._kept: object = kept
        self._done = False
        self.event = torch.cuda.Event()
        self.event.record(stream)

    def landed(self) -> bool:
        if not self._done and self.event.query():
            self._done, self._kept = True, None
        return self._done


class _Landed:
    def landed(self) -> bool:
        return True


class _Flights:
    """Keeps what copies in flight read or write."""

    def __init__(self) -> None:
        self._flights: deque[_Event] = deque()

    def start(self, kept: object, stream: torch.cuda.Stream | None = None) -> _Event:
        while self._flights and self._flights[0].landed():
            self._flights.popleft()
        self._flights.append(_Event(kept, stream))
        return self._flights[-1]


class DirectCopies:
    """A torch call for each piece, on the current stream: right on every device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._flights = _Flights()

    def scatter(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece], after: torch.cuda.Event | None) -> None:
        for piece in pieces:
            part = piece.values.narrow(axis, piece.start, len(piece.slots))
            near.index_copy_(axis, to_device(piece.slots, self._device), part.to(near, non_blocking=True))
        self._landing(pieces)

    def gather(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece]) -> Landing:
        for piece in pieces:
            found = near.index_select(axis, to_device(piece.slots, self._device))
            piece.values.narrow(axis, piece.start, len(piece.slots)).copy_(found, non_blocking=True)
        return self._landing(pieces)

    def _landing(self, pieces: Sequence[Piece]) -> Landing:
        return _Landed() if self._device.type == "cpu" else self._flights.start(pieces)


class _Tables:
    """What launches are told of their tokens, in page-locked memory, a few buffers taking turns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._turn = 0
        self._make(1 << 13)

    def _make(self, capacity: int) -> None:
        self._capacity = capacity
        self._host = torch.empty((_TURNS, capacity), dtype=torch.int64, pin_memory=self._device.type == "cuda")
        self._sent = torch.empty((_TURNS, capacity), dtype=torch.int64, device=self._device)
        self._turns = [(host, host.numpy(), sent) for host, sent in zip(self._host, self._sent, strict=True)]
        self._users: list[_Event | None] = [None] * _TURNS

    def write(self, pieces: Sequence[Piece], axis: int, token: int) -> torch.Tensor:
        """`[3, tokens]` for `CopyTokens`, page-locked. `used_by` must follow."""
        count = sum([len(piece.slots) for piece in pieces])
        if 3 * count > self._capacity:
            for user in self._users:
                if user is not None:
                    user.event.synchronize()
            self._make(1 << (3 * count).bit_length())
        self._turn = turn = (self._turn + 1) % _TURNS
        user = self._users[turn]
        if user is not None and not user.landed():
            user.event.synchronize()
        host, numbers, _ = self._turns[turn]
        _tell(pieces, axis, token, numbers[: 3 * count].reshape(3, count))
        table: torch.Tensor = host[: 3 * count].view(3, count)
        return table

    def send(self, table: torch.Tensor) -> torch.Tensor:
        """What was written last, on the device in the current stream's order."""
        sent: torch.Tensor = self._turns[self._turn][2][: table.numel()].view(3, -1)
        return sent.copy_(table, non_blocking=True)

    def used_by(self, event: _Event) -> None:
        """The launch that reads what was written last."""
        self._users[self._turn] = event


class StreamedCopies:
    """One Triton launch for all pieces of a call, on a stream of its own beside the step.

    The values lie in page-locked memory (the tiers see to that), contiguous. What a launch cannot take, values of
    another dtype than `near`'s or tokens that are no whole number of words, goes the direct way. On a CPU (Triton's
    interpreter, in tests) there are no streams, and a copy has landed when the call returns.
    """

    def __init__(self, device: torch.device, *, short: bool = True) -> None:
        """`short`: without Triton's dispatcher, and small tables are read where they lie."""
        from softmux.engine.kernels.copy import CopyTokens, jobs_of

        self._copy, self._jobs = CopyTokens(keep=short), jobs_of
        self._in_place = _IN_PLACE if short else 0
        self._device = device
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._tables = _Tables(device)
        self._flights = _Flights()
        self._direct = DirectCopies(device)

    def scatter(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece], after: torch.cuda.Event | None) -> None:
        if not _fits(near, axis, pieces):
            self._direct.scatter(near, axis, pieces, after)
        elif self._side is None:
            self._launch(near, axis, pieces, to_near=True, programs=_OVER_PCIE)
        else:
            if after is not None:
                self._side.wait_event(after)
            self._launch(near, axis, pieces, to_near=True, programs=_OVER_PCIE, stream=self._side)
            flight = self._flights.start(pieces, self._side)
            self._tables.used_by(flight)
            torch.cuda.current_stream(self._device).wait_event(flight.event)

    def gather(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece]) -> Landing:
        """Two launches: out of the slots, which the next step may use again, on the current stream, within the device;
        from there to the host beside the steps that follow."""
        if not _fits(near, axis, pieces):
            return self._direct.gather(near, axis, pieces)
        slots = [slot for piece in pieces for slot in piece.slots]
        shape = list(near.shape)
        shape[axis] = len(slots)
        staged = torch.empty(shape, dtype=near.dtype, device=near.device)
        self._launch(near, axis, [Piece(staged, 0, slots)], to_near=False, programs=_ON_DEVICE)
        if self._side is None:
            self._launch(staged, axis, _numbered(pieces), to_near=False, programs=_OVER_PCIE)
            return _Landed()
        staging = _Event()
        self._tables.used_by(staging)
        self._side.wait_event(staging.event)
        self._launch(staged, axis, _numbered(pieces), to_near=False, programs=_OVER_PCIE, stream=self._side)
        flight = self._flights.start((pieces, staged), self._side)
        self._tables.used_by(flight)
        return flight

    def _launch(
        self, near: torch.Tensor, axis: int, pieces: Sequence[Piece], *, to_near: bool, programs: int,
        stream: torch.cuda.Stream | None = None,
    ) -> None:  # fmt: skip
        token, planes = _token_bytes(near, axis), math.prod(near.shape[:axis])
        width = token // _WORD
        table = self._tables.write(pieces, axis, token)
        if self._jobs(table.shape[1], planes, width) > self._in_place * programs:
            with torch.cuda.stream(stream):
                table = self._tables.send(table)
        self._copy(table, near, planes=planes, width=width, to_near=to_near, programs=programs, stream=stream)


def best_copies(device: torch.device) -> Copies:
    """Streamed ones on a CUDA device with Triton, if they bring back what they took there."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        for short in (True, False):
            try:
                streamed = StreamedCopies(device, short=short)
                _prove(streamed, device)
                return streamed
            except Exception as error:
                left = (
                    "by the longer way: the short one fails"
                    if short
                    else "by torch, one at a time: the batched ones fail"
                )
                log.warning("copies %s here (%s)", left, error)
    return DirectCopies(device)


def _prove(copies: Copies, device: torch.device) -> None:
    """Raises RuntimeError where a round trip changes what it carries: one that compiles its kernels and one that finds
    them, with a table that is read in place and one that is sent ahead."""
    ready = torch.cuda.Event()
    ready.record()
    for count in (3, 3, 4096):
        near = torch.zeros((2, 2, count + 5, 4), device=device)
        there = torch.randn((2, 2, count, 4)).pin_memory()
        back = torch.zeros((2, 2, 2, 4)).pin_memory()
        slots = list(range(count + 3, 3, -1))
        copies.scatter(near, 2, [Piece(there, 0, slots)], ready)
        copies.gather(near, 2, [Piece(back, 0, slots[2:0:-1])])
        torch.cuda.synchronize(device)
        if not torch.equal(back, there[:, :, [2, 1]]) or not torch.equal(near[:, :, slots].cpu(), there):
            raise RuntimeError("a copy to the device and back differs from what was sent")


def _token_bytes(near: torch.Tensor, axis: int) -> int:
    return math.prod(near.shape[axis + 1 :]) * near.element_size()


def _fits(near: torch.Tensor, axis: int, pieces: Sequence[Piece]) -> bool:
    return _token_bytes(near, axis) % _WORD == 0 and all(
        piece.values.dtype == near.dtype and piece.values.is_contiguous() for piece in pieces
    )


def _numbered(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, their slots numbered through."""
    numbered, at = [], 0
    for piece in pieces:
        numbered.append(Piece(piece.values, piece.start, range(at, at + len(piece.slots))))
        at += len(piece.slots)
    return numbered


def _tell(pieces: Sequence[Piece], axis: int, token: int, table: np.ndarray[Any, Any]) -> None:
    """Writes `[3, tokens]` int64 for `CopyTokens`: each token's address, its planes' distance in bytes, its slot."""
    if len(pieces) == 1:  # as most often, and then this is a third of all that the copy costs the host
        values, start, slots = pieces[0].values, pieces[0].start, pieces[0].slots
        begin = values.data_ptr() + start * token
        table[0] = np.arange(begin, begin + len(slots) * token, token)
        table[1] = values.shape[axis] * token
        table[2] = slots
        return
    begins: list[int] = []
    planes: list[int] = []
    counts: list[int] = []
    everywhere: list[int] = []
    for piece in pieces:
        count, at = len(piece.slots), len(everywhere)
        begins.append(piece.values.data_ptr() + (piece.start - at) * token)
        planes.append(piece.values.shape[axis] * token)
        counts.append(count)
        everywhere.extend(piece.slots)
    table[0] = np.repeat(begins, counts) + token * np.arange(len(everywhere))
    table[1] = np.repeat(planes, counts)
    table[2] = everywhere
