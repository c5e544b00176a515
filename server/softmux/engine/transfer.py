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
    """Lands when the device has done what the current stream has been given; `kept` stays alive until then."""

    def __init__(self, kept: object = None) -> None:
        self._kept: object = kept
        self._done = False
        self.event = torch.cuda.Event()
        self.event.record()

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

    def start(self, kept: object) -> _Event:
        while self._flights and self._flights[0].landed():
            self._flights.popleft()
        self._flights.append(_Event(kept))
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
    """What launches are told of their tokens: page-locked, then on the device, a few buffers taking turns."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._turn = 0
        self._make(1 << 13)

    def _make(self, capacity: int) -> None:
        self._host = torch.empty((_TURNS, capacity), dtype=torch.int64, pin_memory=self._device.type == "cuda")
        self._numbers: np.ndarray[Any, Any] = self._host.numpy()
        self._sent = torch.empty((_TURNS, capacity), dtype=torch.int64, device=self._device)
        self._users: list[_Event | None] = [None] * _TURNS

    def send(self, table: np.ndarray[Any, Any]) -> torch.Tensor:
        """`[3, tokens]` on the device, in the current stream's order. `used_by` must follow."""
        if table.size > self._sent.shape[1]:
            for user in self._users:
                if user is not None:
                    user.event.synchronize()
            self._make(1 << table.size.bit_length())
        self._turn = turn = (self._turn + 1) % _TURNS
        user = self._users[turn]
        if user is not None and not user.landed():
            user.event.synchronize()
        self._numbers[turn, : table.size] = table.ravel()
        sent = self._sent[turn, : table.size]
        sent.copy_(self._host[turn, : table.size], non_blocking=True)
        return sent.view(3, -1)

    def used_by(self, event: _Event) -> None:
        """The launch that reads what was sent last."""
        self._users[self._turn] = event


class StreamedCopies:
    """One Triton launch for all pieces of a call, on a stream of its own beside the step.

    The values lie in page-locked memory (the tiers see to that), contiguous. What a launch cannot take, values of
    another dtype than `near`'s or tokens that are no whole number of words, goes the direct way. On a CPU (Triton's
    interpreter, in tests) there are no streams, and a copy has landed when the call returns.
    """

    def __init__(self, device: torch.device) -> None:
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
            with torch.cuda.stream(self._side):
                if after is not None:
                    self._side.wait_event(after)
                self._launch(near, axis, pieces, to_near=True, programs=_OVER_PCIE)
                flight = self._flights.start(pieces)
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
        with torch.cuda.stream(self._side):
            self._side.wait_event(staging.event)
            self._launch(staged, axis, _numbered(pieces), to_near=False, programs=_OVER_PCIE)
            flight = self._flights.start((pieces, staged))
            self._tables.used_by(flight)
        return flight

    def _launch(self, near: torch.Tensor, axis: int, pieces: Sequence[Piece], *, to_near: bool, programs: int) -> None:
        from softmux.engine.kernels.copy import copy_tokens

        token = _token_bytes(near, axis)
        sent = self._tables.send(_table(pieces, axis, token))
        planes = math.prod(near.shape[:axis])
        copy_tokens(sent, near, planes=planes, width=token // _WORD, to_near=to_near, programs=programs)


def best_copies(device: torch.device) -> Copies:
    """Streamed ones on a CUDA device with Triton, if they bring back what they took there."""
    if device.type == "cuda" and importlib.util.find_spec("triton") is not None:
        try:
            streamed = StreamedCopies(device)
            _prove(streamed, device)
            return streamed
        except Exception as error:
            log.warning("copies by torch, one at a time: the batched ones fail here (%s)", error)
    return DirectCopies(device)


def _prove(copies: Copies, device: torch.device) -> None:
    """Raises RuntimeError where a round trip changes what it carries."""
    near = torch.zeros((2, 2, 8, 4), device=device)
    there = torch.randn((2, 2, 3, 4)).pin_memory()
    back = torch.zeros((2, 2, 2, 4)).pin_memory()
    ready = torch.cuda.Event()
    ready.record()
    copies.scatter(near, 2, [Piece(there, 0, [6, 1, 3])], ready)
    copies.gather(near, 2, [Piece(back, 0, [3, 6])])
    torch.cuda.synchronize(device)
    if not torch.equal(back, there[:, :, [2, 0]]):
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


def _table(pieces: Sequence[Piece], axis: int, token: int) -> np.ndarray[Any, Any]:
    """`[3, tokens]` int64 for `copy_tokens`: each token's address, its planes' distance in bytes, its slot."""
    begins: list[int] = []
    planes: list[int] = []
    counts: list[int] = []
    slots: list[int] = []
    for piece in pieces:
        count, at = len(piece.slots), len(slots)
        begins.append(piece.values.data_ptr() + (piece.start - at) * token)
        planes.append(piece.values.shape[axis] * token)
        counts.append(count)
        slots.extend(piece.slots)
    table = np.empty((3, len(slots)), dtype=np.int64)
    each = np.array(counts)
    table[0] = np.repeat(np.array(begins, dtype=np.int64), each) + token * np.arange(len(slots))
    table[1] = np.repeat(np.array(planes, dtype=np.int64), each)
    table[2] = slots
    return table
